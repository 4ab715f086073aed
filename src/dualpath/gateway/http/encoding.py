"""Bodies that come compressed: inflated piece by piece, so that a small one that becomes a large one is stopped early.

What a client may send is in RFC 9110, 8.4: gzip and deflate are served, the others get 415 with the list of these.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from dualpath.gateway.errors import ApiError

SERVED = "gzip, deflate"
PIECE_BYTES = 1 << 18  # of inflated text at once
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


class Decoder:
    """Of a body that is not compressed."""

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """What ``chunk`` becomes. Raises ApiError where it cannot be read."""
        yield chunk

    def close(self) -> None:
        """Raises ApiError if the body has no end."""


class Inflater(Decoder):
    def __init__(self, encoding: str) -> None:
        """``encoding`` is gzip or deflate."""
        self._encoding = encoding
        self._wbits = _GZIP if encoding == "gzip" else _ZLIB
        self._inflate = zlib.decompressobj(self._wbits)
        self._started = False

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        if not chunk:
            return
        if not self._started and self._encoding == "deflate" and not _is_zlib(chunk):
            self._inflate = zlib.decompressobj(_RAW)  # what many took "deflate" to mean
        self._started = True
        piece = b""
        while chunk or len(piece) == PIECE_BYTES:  # a full piece may not have been all
            if self._inflate.eof:  # a gzip file may have several members
                self._inflate = zlib.decompressobj(self._wbits)
            try:
                piece = self._inflate.decompress(chunk, PIECE_BYTES)
            except zlib.error as error:
                raise self._unreadable(str(error)) from None
            chunk = self._inflate.unconsumed_tail or self._inflate.unused_data
            yield piece

    def close(self) -> None:
        if self._started and not self._inflate.eof:
            raise self._unreadable("it ends too early")

    def _unreadable(self, reason: str) -> ApiError:
        return ApiError(400, f"the body is not valid {self._encoding}: {reason}", code="invalid_encoding")


def decoder_of(content_encoding: str) -> Decoder:
    """For the value of a Content-Encoding header, "" where there is none. ApiError 415 for what is not served."""
    name = content_encoding.strip().lower()
    if name in ("", "identity"):
        return Decoder()
    if name in ("gzip", "x-gzip"):
        return Inflater("gzip")
    if name == "deflate":
        return Inflater("deflate")
    raise ApiError(
        415,
        f"Content-Encoding {content_encoding[:40]!r} is not supported: send {SERVED}, or none",
        code="unsupported_encoding",
        headers={"Accept-Encoding": SERVED},
    )


def _is_zlib(chunk: bytes) -> bool:
    """RFC 1950: deflate's method in the first byte's low half, and both bytes a multiple of 31."""
    return chunk[0] & 0x0F == zlib.DEFLATED and (len(chunk) < 2 or (chunk[0] << 8 | chunk[1]) % 31 == 0)

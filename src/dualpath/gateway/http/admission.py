"""What a request body costs before anybody knows whether it can be served: bounded in bytes, in time and at once.

Bytes are counted as they arrive, not as they are announced, so that a client that stalls holds nothing but what it has
sent. From there until its prompt is tokenised a body holds its share of the body memory. Parsing, rendering and
tokenising take up to about 150 times a body's bytes for a moment: as many bodies are worked on at once as the largest
one has bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request

from dualpath.gateway.errors import ApiError
from dualpath.gateway.http.byte_budget import ByteBudget, Share
from dualpath.gateway.http.encoding import decoder_of
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.text.tokenizer import Tokenizer

T = TypeVar("T")

_MAX_LENGTH_DIGITS = 20  # of a Content-Length header


class Admission:
    """One per app."""

    def __init__(self, settings: GatewaySettings, max_context_tokens: int, tokenizer: Tokenizer) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self.max_body_bytes = settings.body_limit_bytes(max_context_tokens)
        self.memory = ByteBudget(settings.body_memory_bytes, "for the body")
        self.work = ByteBudget(self.max_body_bytes, "to tokenise the prompt")

    async def on_body(self, request: Request, work: Callable[[bytes], T]) -> T:
        """``work`` over the request's body: long ones in a thread, as tokenising them would stall running streams."""
        with self.memory.share() as share:
            raw = await self._read(request, share)
            if len(raw) <= self._settings.inline_body_bytes:
                return work(raw)
            with self.work.share() as turn:
                await turn.take(len(raw), self._settings.admission_timeout_s)
                return await self._tokenizer.in_thread(lambda: work(raw))

    async def _read(self, request: Request, share: Share) -> bytes:
        """The whole body, inflated. The client's time does not run while we make it wait."""
        decoder = decoder_of(request.headers.get("content-encoding", ""))
        self._check_announced(request)
        loop, rest_s = asyncio.get_running_loop(), self._settings.connections.body_timeout_s
        stream = request.stream()
        chunks: list[bytes] = []
        num_bytes = 0
        while True:
            start_s = loop.time()
            try:
                async with asyncio.timeout(rest_s):
                    chunk = await anext(stream, None)
            except TimeoutError:
                raise _too_slow(self._settings.connections.body_timeout_s) from None
            rest_s = max(0.0, rest_s - (loop.time() - start_s))
            if chunk is None:
                decoder.close()
                return b"".join(chunks)
            for piece in decoder.pieces(chunk):
                num_bytes += len(piece)
                if num_bytes > self.max_body_bytes:
                    raise self._too_large()
                if num_bytes > self._settings.inline_body_bytes:
                    await share.take(num_bytes - share.held_bytes, self._settings.admission_timeout_s)
                chunks.append(piece)

    def _check_announced(self, request: Request) -> None:
        announced = request.headers.get("content-length", "0")
        if len(announced) > _MAX_LENGTH_DIGITS or (announced.isdecimal() and int(announced) > self.max_body_bytes):
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self.max_body_bytes} bytes", code="body_too_large")


def _too_slow(timeout_s: float) -> ApiError:
    message = f"the body did not come within {timeout_s:g} s"
    return ApiError(408, message, code="body_timeout", headers={"Connection": "close"})

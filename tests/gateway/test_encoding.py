"""Compressed bodies: served as if they were not, within the same bounds."""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.fakes import FakeBackend
from tests.gateway.test_errors import check

from dualpath.gateway.errors import ApiError
from dualpath.gateway.http.encoding import PIECE_BYTES, decoder_of

BODY = json.dumps({"prompt": "Hello " * 100, "max_tokens": 2}).encode()


def raw_deflate(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush()


def inflated(encoding: str, data: bytes, chunk_bytes: int) -> bytes:
    decoder = decoder_of(encoding)
    chunks = [data[i : i + chunk_bytes] for i in range(0, len(data), chunk_bytes)]
    pieces = [piece for chunk in chunks for piece in decoder.pieces(chunk)]
    decoder.close()
    assert max(map(len, pieces), default=0) <= PIECE_BYTES
    return b"".join(pieces)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("gzip", gzip.compress(BODY, mtime=0)),
        ("x-gzip", gzip.compress(BODY, mtime=0)),
        ("GZIP", gzip.compress(BODY[:50], mtime=0) + gzip.compress(BODY[50:], mtime=0)),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
        ("identity", BODY),
    ],
)
async def test_served(http: httpx.AsyncClient, backend: FakeBackend, encoding: str, data: bytes) -> None:
    answer = await http.post("/v1/completions", content=data, headers={"Content-Encoding": encoding})
    assert answer.status_code == 200, answer.text
    assert len(backend.requests[0].prompt_token_ids) == 600


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "é"])
async def test_not_served(http: httpx.AsyncClient, encoding: str) -> None:
    headers = {b"Content-Encoding": encoding.encode("latin-1")}
    answer = await http.post("/v1/completions", content=BODY, headers=headers)  # type: ignore[arg-type]
    assert "gzip, deflate" in check(answer, 415, None, "unsupported_encoding")
    assert answer.headers["accept-encoding"] == "gzip, deflate"


PACKED = gzip.compress(BODY, mtime=0)


@pytest.mark.parametrize("data", [BODY, PACKED[:-9], PACKED + b"\0", b"\x1f\x8b"])
async def test_unreadable(http: httpx.AsyncClient, data: bytes) -> None:
    answer = await http.post("/v1/completions", content=data, headers={"Content-Encoding": "gzip"})
    check(answer, 400, None, "invalid_encoding")


async def test_a_small_body_that_becomes_a_large_one_is_stopped(http: httpx.AsyncClient) -> None:
    bomb = gzip.compress(b'{"prompt": "' + b"x" * (64 << 20) + b'"}')
    assert len(bomb) < 1 << 20
    answer = await http.post("/v1/completions", content=bomb, headers={"Content-Encoding": "gzip"})
    check(answer, 413, None, "body_too_large")


@given(st.binary(max_size=300), st.integers(1, 2000), st.integers(1, 5000), st.sampled_from(["gzip", "zlib", "raw"]))
def test_any_bytes_in_any_chunks(data: bytes, times: int, chunk_bytes: int, form: str) -> None:
    data *= times
    packed = {"gzip": gzip.compress, "zlib": zlib.compress, "raw": raw_deflate}[form](data)
    assert inflated("gzip" if form == "gzip" else "deflate", packed, chunk_bytes) == data


@given(st.binary(max_size=300))
def test_no_bytes_at_all_fail_in_another_way(data: bytes) -> None:
    for encoding in ("gzip", "deflate"):
        with contextlib.suppress(ApiError):
            inflated(encoding, data, 7)

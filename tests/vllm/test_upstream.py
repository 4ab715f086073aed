"""Questions that any server can answer: whoever does not answer in time is passed over."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from dualpath.core.errors import EngineLostError
from dualpath.core.exchange import Exchanges
from dualpath.vllm.api_server import ApiServer
from dualpath.vllm.upstream import VllmUpstream


def server(name: str, *, hangs: bool) -> ApiServer:
    async def answer(_: httpx.Request) -> httpx.Response:
        if hangs:
            await asyncio.Event().wait()
        return httpx.Response(200, content=name.encode())

    return ApiServer(f"http://{name}", transport=httpx.MockTransport(answer))


async def test_a_server_that_hangs_is_passed_over() -> None:
    upstream = VllmUpstream([server("a", hangs=True), server("b", hangs=False)], Exchanges(), answer_s=0.05)
    async with asyncio.timeout(5):
        assert [await upstream.ask("/x/render", {}) for _ in range(3)] == [b"b"] * 3


async def test_where_all_hang_the_last_one_is_named() -> None:
    upstream = VllmUpstream([server("a", hangs=True), server("b", hangs=True)], Exchanges(), answer_s=0.05)
    with pytest.raises(EngineLostError, match=r"http://b has not answered /x/render for 0.05 s"):
        async with asyncio.timeout(5):
            await upstream.ask("/x/render", {})

"""Links over TCP: a node's process behind a socket answers as one in our own process does, or says that it does not."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from dualpath.core.errors import DualPathError, EngineLostError
from dualpath.launch.node_process import NodeProcess
from dualpath.launch.testbed.socket_channel import SocketChannel, serve_node


class FakeProcess:
    """Echoes; ``poll`` waits as long as it is told to, and notes when it is cut off."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.num_cancelled = 0

    async def open(self, session: str) -> bytes:
        return f"opened {session}".encode()

    async def send(self, session: str, batch: bytes) -> None:
        if session != "current":
            raise EngineLostError("this session has been replaced by a newer one")
        self.received.append(batch)

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        try:
            await asyncio.sleep(max_wait_s)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        return b"news"


async def connected() -> tuple[FakeProcess, asyncio.Server, SocketChannel]:
    process = FakeProcess()
    server = await serve_node(cast(NodeProcess, cast(Any, process)), "127.0.0.1", 0)
    return process, server, SocketChannel("127.0.0.1", server.sockets[0].getsockname()[1])


async def test_calls_pass_while_a_poll_waits() -> None:
    process, server, channel = await connected()
    assert await channel.open("current") == b"opened current"
    poll = asyncio.create_task(channel.poll("current", 0.2))
    for number in range(3):
        await channel.send("current", bytes([number]) * 100_000)
    assert not poll.done()
    assert process.received == [bytes([number]) * 100_000 for number in range(3)]
    assert await poll == b"news"
    await channel.close()
    server.close()


async def test_what_the_node_refuses_is_said_here() -> None:
    _, server, channel = await connected()
    await channel.open("current")
    with pytest.raises(DualPathError, match="replaced by a newer one"):
        await channel.send("former", b"")
    await channel.close()
    server.close()


async def test_a_new_session_ends_the_calls_of_the_one_before() -> None:
    process, server, channel = await connected()
    await channel.open("current")
    poll = asyncio.create_task(channel.poll("current", 3600.0))
    await asyncio.sleep(0.05)
    assert await channel.open("next") == b"opened next"
    with pytest.raises(DualPathError, match="broke"):
        await poll
    async with asyncio.timeout(10):
        while not process.num_cancelled:  # noqa: ASYNC110  (the server has no event for it)
            await asyncio.sleep(0.01)
    await channel.close()
    server.close()


async def test_a_node_that_is_not_there() -> None:
    _, server, channel = await connected()
    server.close()
    await server.wait_closed()
    with pytest.raises(DualPathError, match="cannot be reached"):
        await channel.open("current")
    with pytest.raises(DualPathError, match="is closed"):
        await channel.poll("current", 1.0)

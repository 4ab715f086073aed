"""Links over TCP: a node's process behind a socket answers as one in our own process does, or says that it does not.

Who does not know the secret gets no answer at all, and is never listened to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct

import pytest
from tests.listening import listening

from dualpath.core import handshake
from dualpath.core.errors import DualPathError, EngineLostError, EngineSilentError
from dualpath.protocol import socket_channel
from dualpath.protocol.socket_channel import NodeServer, Question, SocketChannel, _encode

SECRET = b"known to both ends"


class FakeProcess:
    """Echoes; ``poll`` waits as long as it is told to, and notes when it is cut off."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.received: list[bytes] = []
        self.num_cancelled = 0

    async def open(self, session: str) -> bytes:
        self.opened.append(session)
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


async def connected(secret: bytes = SECRET) -> tuple[FakeProcess, NodeServer, SocketChannel]:
    process = FakeProcess()
    server = NodeServer(process, SECRET)
    return process, server, SocketChannel("127.0.0.1", await server.start("127.0.0.1", 0), secret)


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
    await server.close()


async def test_what_the_node_refuses_is_said_here() -> None:
    _, server, channel = await connected()
    await channel.open("current")
    with pytest.raises(DualPathError, match="replaced by a newer one"):
        await channel.send("former", b"")
    await channel.close()
    await server.close()


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
    await server.close()


async def test_a_node_that_is_not_there() -> None:
    _, server, channel = await connected()
    await server.close()
    with pytest.raises(DualPathError, match="cannot be reached"):
        await channel.open("current")
    with pytest.raises(DualPathError, match="is closed"):
        await channel.poll("current", 1.0)


async def test_a_node_that_takes_connections_and_says_nothing_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_channel, "_CONNECT_S", 0.05)
    with (
        socket.create_server(("127.0.0.1", 0)) as stopped,  # the kernel goes on taking them
        pytest.raises(EngineSilentError, match="says nothing"),
    ):
        await SocketChannel("127.0.0.1", stopped.getsockname()[1], SECRET).open("current")


async def test_a_caller_without_the_secret_is_refused_and_counted() -> None:
    process, server, channel = await connected(secret=b"something else")
    for number in range(1, 4):
        with pytest.raises(DualPathError, match="does not know our secret"):
            await channel.open("current")
        assert server.refusals.count == number
    assert process.opened == []
    await server.close()


async def test_a_caller_tells_an_impostor_nothing() -> None:
    """Somebody else at the node's address, who asks but cannot prove in turn."""
    heard = bytearray()

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(handshake.challenge())
        heard.extend(await reader.readexactly(handshake.RESPONSE_BYTES))
        writer.write(bytes(handshake.CONFIRMATION_BYTES))
        heard.extend(await reader.read())

    impostor = await asyncio.start_server(pretend, "127.0.0.1", 0)
    channel = SocketChannel("127.0.0.1", impostor.sockets[0].getsockname()[1], SECRET)
    with pytest.raises(DualPathError, match="secret"):
        await channel.open("current")
    assert len(heard) == handshake.RESPONSE_BYTES
    assert SECRET not in heard
    impostor.close()


def framed_open() -> bytes:
    content = _encode(Question(1, "open", "current"))
    return struct.pack("<I", len(content)) + content


@pytest.mark.parametrize(
    "first_bytes",
    [b"", framed_open(), bytes(handshake.RESPONSE_BYTES) + framed_open(), b"\xff" * 100_000, b"GET / HTTP/1.1\r\n\r\n"],
    ids=["silence", "a call", "a wrong proof and a call", "noise", "http"],
)
async def test_what_a_stranger_says_has_no_effect(first_bytes: bytes) -> None:
    process, server, channel = await connected()
    reader, writer = await asyncio.open_connection("127.0.0.1", channel._port)
    with contextlib.suppress(OSError):
        writer.write(first_bytes)
        if not first_bytes:
            writer.write_eof()
    with contextlib.suppress(OSError):
        async with asyncio.timeout(10):
            assert len(await reader.read()) == handshake.CHALLENGE_BYTES  # and then the end
    writer.close()
    assert process.opened == []
    assert server.refusals.count == 1
    assert await channel.open("current") == b"opened current"
    await channel.close()
    await server.close()


async def test_a_proof_is_good_once() -> None:
    _, server, channel = await connected()
    port, answers = channel._port, []
    response: bytes | None = None
    for _ in range(2):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        asked = await reader.readexactly(handshake.CHALLENGE_BYTES)
        response = response or handshake.respond(SECRET, asked)
        assert response is not None
        writer.write(response + framed_open())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            answers.append(await reader.readexactly(handshake.CONFIRMATION_BYTES))
        writer.close()
    assert len(answers) == 1
    assert server.refusals.count == 1
    await server.close()


async def test_it_listens_on_the_given_address_and_no_other() -> None:
    _, server, channel = await connected()
    assert {str(address) for address, port in listening(os.getpid()) if port == channel._port} == {"127.0.0.1"}
    await server.close()

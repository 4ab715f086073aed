"""A channel over TCP: one connection for each session, between ends that have proved to know the same secret.

They do so before anything else that comes is read (``core.handshake``). What follows is not encrypted.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import struct
from typing import Any

import msgspec

from dualpath.core import handshake
from dualpath.core.errors import DualPathError, EngineSilentError
from dualpath.protocol.channel import Process

_log = logging.getLogger(__name__)
_LENGTH = struct.Struct("<I")
_CONNECT_S = 2.0  # with the handshake, at either end
_UNACKNOWLEDGED_MS = 5000  # a connection that a cut link has broken ends, instead of backing off for minutes


class Question(msgspec.Struct, array_like=True):
    """A call of the process: its number on this connection, the method, the session, the other argument."""

    number: int
    method: str
    session: str
    batch: bytes = b""
    max_wait_s: float = 0.0


class Answer(msgspec.Struct, array_like=True):
    number: int
    value: bytes = b""
    error: str | None = None


_encode = msgspec.msgpack.Encoder().encode
_questions = msgspec.msgpack.Decoder(Question)
_answers = msgspec.msgpack.Decoder(Answer)


class SocketChannel:
    """The caller's end of ``protocol.channel``; whoever can kill the process adds ``end_process``. Event loop only.

    Raises EngineSilentError where a process takes a connection and says nothing, as one that was stopped does, and
    DualPathError where the connection fails: that says nothing about the process.
    """

    def __init__(self, host: str, port: int, secret: bytes) -> None:
        self._host, self._port, self._secret = host, port, secret
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def open(self, session: str) -> bytes:
        await self.close()
        reader, self._writer = await self._connect()
        self._reading = asyncio.create_task(self._read(reader))
        return await self._ask("open", session)

    async def send(self, session: str, batch: bytes) -> None:
        await self._ask("send", session, batch=batch)

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        return await self._ask("poll", session, max_wait_s=max_wait_s)

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        place, writer = f"{self._host}:{self._port}", None
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                _give_up_early(writer)
                if await _prove(self._secret, reader, writer):
                    return reader, writer
            error: Exception = DualPathError(f"{place} does not know our secret, or we do not know its own")
        except asyncio.IncompleteReadError:
            error = DualPathError(f"{place} has closed the connection: it does not know our secret")
        except (OSError, TimeoutError) as reason:
            if writer is not None and isinstance(reason, TimeoutError):
                error = EngineSilentError(f"{place} takes a connection and says nothing")
            else:
                error = DualPathError(f"{place} cannot be reached: {reason or 'no answer'}")
        if writer is not None:
            writer.transport.abort()
        raise error

    async def _ask(self, method: str, session: str, **arguments: Any) -> bytes:
        writer = self._writer
        if writer is None or writer.is_closing() or self._reading is None or self._reading.done():
            raise DualPathError(f"the connection to {self._host} is closed")
        question = Question(next(self._numbers), method, session, **arguments)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[question.number] = answer
        try:
            writer.write(_frame(question))
            return await answer
        finally:
            del self._waiting[question.number]

    async def _read(self, reader: asyncio.StreamReader) -> None:
        reason = "closed"
        try:
            while True:
                answer = _answers.decode(await _read_frame(reader))
                future = self._waiting.get(answer.number)
                if future is None or future.done():
                    continue
                if answer.error is None:
                    future.set_result(answer.value)
                else:
                    future.set_exception(DualPathError(answer.error))
        except (OSError, asyncio.IncompleteReadError) as error:
            reason = str(error)
        finally:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(DualPathError(f"the connection to {self._host} broke: {reason}"))


class NodeServer:
    """The process's end. Calls of a connection that has ended are cancelled: their answers would reach nobody."""

    def __init__(self, process: Process, secret: bytes) -> None:
        self._process, self._secret = process, secret
        self._server: asyncio.Server | None = None
        self._talks: dict[asyncio.Task[object] | None, asyncio.StreamWriter] = {}
        self.refusals = handshake.Refusals(_log, "channel of a node")

    async def start(self, host: str, port: int) -> int:
        """Listen on this address and no other; returns the port."""
        self._server = await asyncio.start_server(self._talk, host, port)
        number: int = self._server.sockets[0].getsockname()[1]
        return number

    async def close(self) -> None:
        """Take no new connections; those that are there go on."""
        if self._server is not None:
            self._server.close()

    async def end(self) -> None:
        """End those that are there, too."""
        await self.close()
        for writer in self._talks.values():
            writer.transport.abort()
        while self._talks:
            await asyncio.wait([talk for talk in self._talks if talk is not None])

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _give_up_early(writer)
        calls: set[asyncio.Task[None]] = set()
        talk = asyncio.current_task()
        self._talks[talk] = writer
        try:
            if not await self._admits(reader, writer):
                return
            while True:
                question = _questions.decode(await _read_frame(reader))
                call = asyncio.create_task(_carry_out(self._process, question, writer))
                calls.add(call)
                call.add_done_callback(calls.discard)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for call in calls:
                call.cancel()
            writer.transport.abort()
            del self._talks[talk]

    async def _admits(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Reads as many bytes as a proof has, and nothing more from who has none."""
        asked = handshake.challenge()
        writer.write(asked)
        confirmation = None
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(_CONNECT_S):
                response = await reader.readexactly(handshake.RESPONSE_BYTES)
            confirmation = handshake.confirm(self._secret, asked, response)
        if confirmation is None:
            self.refusals.add(writer.get_extra_info("peername"))
            return False
        writer.write(confirmation)
        return True


async def _prove(secret: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """To a server, that we know the secret; does it, too?"""
    asked = await reader.readexactly(handshake.CHALLENGE_BYTES)
    response = handshake.respond(secret, asked)
    if response is None:
        return False
    writer.write(response)
    confirmation = await reader.readexactly(handshake.CONFIRMATION_BYTES)
    return handshake.is_confirmed(secret, asked, response, confirmation)


async def _carry_out(process: Process, question: Question, writer: asyncio.StreamWriter) -> None:
    try:
        value = b""
        match question.method:
            case "open":
                value = await process.open(question.session)
            case "send":
                await process.send(question.session, question.batch)
            case "poll":
                value = await process.poll(question.session, question.max_wait_s)
        answer = Answer(question.number, value)
    except Exception as error:  # the caller's to judge
        answer = Answer(question.number, error=str(error) or repr(error))
    with contextlib.suppress(OSError):
        writer.write(_frame(answer))


def _frame(message: Question | Answer) -> bytes:
    content = _encode(message)
    return _LENGTH.pack(len(content)) + content


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    (num_bytes,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return await reader.readexactly(num_bytes)


def _give_up_early(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)

"""A channel over TCP, one connection for each session: to nodes whose processes we have started ourselves."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
from typing import Any

import msgspec

from dualpath.core.errors import DualPathError
from dualpath.launch.node_process import NodeProcess

_LENGTH = struct.Struct("<I")
_CONNECT_S = 2.0
_UNACKNOWLEDGED_MS = 5000  # a connection that a cut link has broken ends, instead of backing off for minutes


class Question(msgspec.Struct, array_like=True):
    """A call of ``NodeProcess``: its number on this connection, the method, the session, the other argument."""

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
    """The caller's end: ``open``, ``send`` and ``poll`` of ``engine.remote.channel.Channel``. Event loop only.

    Raises DualPathError where the connection fails: that says nothing about the process.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def open(self, session: str) -> bytes:
        await self.close()
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await asyncio.open_connection(self._host, self._port)
        except (OSError, TimeoutError) as error:
            raise DualPathError(f"{self._host}:{self._port} cannot be reached: {error or 'no answer'}") from None
        _give_up_early(writer)
        self._writer = writer
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


async def serve_node(process: NodeProcess, host: str, port: int) -> asyncio.Server:
    """The node's end. Calls of a connection that has ended are cancelled: their answers would reach nobody."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _give_up_early(writer)
        calls: set[asyncio.Task[None]] = set()
        try:
            while True:
                question = _questions.decode(await _read_frame(reader))
                call = asyncio.create_task(_carry_out(process, question, writer))
                calls.add(call)
                call.add_done_callback(calls.discard)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for call in calls:
                call.cancel()
            writer.transport.abort()

    return await asyncio.start_server(talk, host, port)


async def _carry_out(process: NodeProcess, question: Question, writer: asyncio.StreamWriter) -> None:
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

"""Calls under way on one link: who waits for what, until its last message or the link's end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dualpath.core.errors import EngineLostError, EngineSilentError
from dualpath.core.ids import EngineId
from dualpath.core.one_reader import OneReader
from dualpath.protocol import wire
from dualpath.protocol.methods import Method

_END_S = 30.0  # that a call may take to end after it was cancelled


@dataclass(slots=True, eq=False)
class _Open:
    """A call that has not ended. ``items`` are values, then None: what ended it is ``end``'s."""

    call_id: int
    items: OneReader[msgspec.Raw | None] = field(default_factory=OneReader)
    end: asyncio.Future[msgspec.Raw] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Calls:
    """Event loop only. ``outbox`` is what the link has to send."""

    def __init__(self) -> None:
        self.outbox: list[wire.ToNode] = []
        self.due = asyncio.Event()  # there is something to send
        self._open: dict[int, _Open] = {}
        self._numbers = itertools.count(1)
        self._closed: EngineLostError | None = EngineSilentError("the node has not been reached yet")

    def open(self) -> None:
        """A session has begun."""
        self.outbox.clear()
        self.due.clear()
        self._closed = None

    def close(self, error: EngineLostError) -> None:
        """The link is down: everybody who waits is told, and who calls from now on. A later ``error`` replaces it."""
        self._closed = error
        calls, self._open = self._open, {}
        for call in calls.values():
            _fail(call, error)

    @property
    def is_open(self) -> bool:
        return self._closed is None

    def take(self, message: wire.ToScheduler) -> None:
        """A message has come. One for a call that nobody waits for any more is dropped."""
        if isinstance(message, wire.Item):
            call = self._open.get(message.call_id)
            if call is not None:
                call.items.put(message.value)
            return
        call = self._open.pop(message.call_id, None)
        if call is None:
            return
        if isinstance(message, wire.Failed):
            _fail(call, message.error.error())
        else:
            call.end.set_result(message.value)
            call.items.put(None)

    async def call(self, engine_id: EngineId, method: Method, arguments: tuple[Any, ...]) -> Any:
        """The call's result. Cancelled, it ends when nothing of the call runs any more, or the link is down."""
        call = self._begin(engine_id, method, arguments)
        try:
            await asyncio.shield(call.end)
        finally:
            await self._end(call)
        return method.answers.decode(call.end.result())

    async def stream(
        self, engine_id: EngineId, method: Method, arguments: tuple[Any, ...]
    ) -> AsyncGenerator[Any, None]:
        """The call's items. Closing it closes the engine's own iterator first."""
        call = self._begin(engine_id, method, arguments)
        try:
            queue, decode = call.items, method.answers.decode
            while True:
                while not queue.items:
                    await queue.filled()
                item = queue.items.popleft()
                if item is None:
                    break
                yield decode(item)
            call.end.result()
        finally:
            await self._end(call)

    def _begin(self, engine_id: EngineId, method: Method, arguments: tuple[Any, ...]) -> _Open:
        if self._closed is not None:
            raise type(self._closed)(str(self._closed))
        call, content = _Open(next(self._numbers)), wire.raw(arguments)
        self._open[call.call_id] = call
        self._send(wire.Call(call.call_id, engine_id, method.name, content))
        return call

    async def _end(self, call: _Open) -> None:
        """If the call still runs, end it and wait for that, but not for good: a release waits for it over there."""
        if call.end.done():
            return
        self._send(wire.Cancel(call.call_id))
        await asyncio.wait([call.end], timeout=_END_S)
        if not call.end.done():
            self._open.pop(call.call_id, None)
            _fail(call, EngineSilentError(f"a cancelled call did not end within {_END_S:g} s"))

    def _send(self, message: wire.ToNode) -> None:
        self.outbox.append(message)
        self.due.set()


def _fail(call: _Open, error: Exception) -> None:
    call.end.set_exception(error)
    call.end.exception()  # it may be that nobody asks
    call.items.put(None)

"""The node's side: carries out callers' calls on its engines and collects what comes of them until each one asks.

Callers are the scheduler and gateways; each has a session of its own, and one's end is nothing to the others.
Whatever ended up in the outbox between two polls goes in one message. A decode step delivers its tokens to all its
requests in one turn of the event loop, so a step is one message for each caller, however many requests it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import msgspec

from dualpath.core.errors import DualPathError, EngineLostError
from dualpath.core.ids import EngineId, RequestId
from dualpath.core.repeated_warning import RepeatedWarning
from dualpath.core.runtime import Clock, SystemRuntime
from dualpath.protocol import wire
from dualpath.protocol.api import NODE, NodeCalls
from dualpath.protocol.methods import Tenure, methods

log = logging.getLogger(__name__)


class Served(NamedTuple):
    """Who answers, and the protocol class that says what may be asked: no other of its attributes is reached."""

    engine: Any
    protocol: type


@dataclass(slots=True)
class _Running:
    """A call under way, and whose it is: nobody's until it has begun."""

    task: asyncio.Task[Any]
    hold: tuple[EngineId, RequestId] | None = None


@dataclass(slots=True, eq=False)
class _Caller:
    """``session`` None: it has ended, and no other has begun."""

    name: str
    session: str | None = None
    calls: dict[int, _Running] = field(default_factory=dict)
    outbox: list[wire.ToScheduler] = field(default_factory=list)
    filled: asyncio.Event = field(default_factory=asyncio.Event)

    async def end_calls(self) -> None:
        while self.calls:
            tasks = [call.task for call in self.calls.values()]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def post(self, message: wire.ToScheduler) -> None:
        self.outbox.append(message)
        self.filled.set()


Held = tuple[tuple[EngineId, RequestId], ...]


class EngineServer:
    """Event loop only. Calls belong to a caller's session; opening its next ends all calls of the one before.

    ``seat``: what a caller alone may ask, beside the engines.
    """

    def __init__(
        self,
        engines: Mapping[EngineId, Served],
        clock: Clock | None = None,
        seat: Callable[[str], Mapping[EngineId, Served]] = lambda caller: {},
    ) -> None:
        self._engines = {**engines, NODE: Served(self, NodeCalls)}
        self._seat = seat
        self._bugs = RepeatedWarning(log, clock or SystemRuntime())
        self._callers: dict[str, _Caller] = {}
        self._held: dict[tuple[EngineId, RequestId], str] = {}  # by whom requests may hold something of an engine
        self.num_batches = 0  # messages sent with something in them

    async def open(self, session: str) -> Held:
        """Begin a session. Returns what its caller's requests still hold: ending their calls does not release them.

        Raises EngineLostError where a newer session begins before this one has.
        """
        name = caller_of(session)
        caller = self._callers.setdefault(name, _Caller(name))
        caller.session = session
        caller.filled.set()  # a poll of the former session ends
        await caller.end_calls()
        self._check(session)  # one that came meanwhile has the word
        caller.outbox.clear()
        caller.filled.clear()
        return self._held_by(name)

    async def end_caller(self, caller: str) -> Held:
        """``api.NodeCalls``."""
        known = self._callers.get(caller)
        if known is not None:
            known.session = None
            known.filled.set()
            await known.end_calls()
        if known is not None and known.session is None:
            self._callers.pop(caller, None)
        return self._held_by(caller)

    def others(self, session: str) -> tuple[str, ...]:
        """All other callers that have a session, or for whose requests something is held."""
        names = {**self._callers, **dict.fromkeys(self._held.values())}
        return tuple(name for name in names if name != caller_of(session))

    def _held_by(self, caller: str) -> Held:
        return tuple(hold for hold, holder in self._held.items() if holder == caller)

    def receive(self, session: str, batch: bytes) -> None:
        """Start and cancel calls. Raises EngineLostError for a session that is not its caller's current one."""
        caller = self._check(session)
        for message in wire.decode_to_node(batch):
            if isinstance(message, wire.Call):
                self._start(caller, message)
            elif message.call_id in caller.calls:
                caller.calls[message.call_id].task.cancel()

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        """What has come up since the last poll; waits for something up to ``max_wait_s``. One poll at a time."""
        caller = self._check(session)
        if not caller.outbox:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max_wait_s):
                    await caller.filled.wait()
            await asyncio.sleep(0)  # the rest of the step
        if session != caller.session:
            return wire.encode([])
        batch, caller.outbox = caller.outbox, []
        caller.filled.clear()
        self.num_batches += bool(batch)
        return wire.encode(batch)

    async def close(self) -> None:
        for name in list(self._callers):
            await self.end_caller(name)

    def _check(self, session: str) -> _Caller:
        caller = self._callers.get(caller_of(session))
        if caller is None or session != caller.session:
            raise EngineLostError("this session has been replaced by a newer one")
        return caller

    # -- calls ----------------------------------------------------------------------------------------------------

    def _start(self, caller: _Caller, call: wire.Call) -> None:
        task = asyncio.create_task(self._carry_out(caller, call))
        caller.calls[call.call_id] = _Running(task)
        task.add_done_callback(partial(self._end, caller, call.call_id))

    def _end(self, caller: _Caller, call_id: int, task: asyncio.Task[Any]) -> None:
        del caller.calls[call_id]
        if task.cancelled():
            caller.post(wire.Failed(call_id, wire.Failure.of(EngineLostError("cancelled"))))
        elif (error := task.exception()) is not None:
            if not isinstance(error, DualPathError):
                self._bugs.log("".join(traceback.format_exception(error)))
            caller.post(wire.Failed(call_id, wire.Failure.of(error)))
        else:
            caller.post(wire.Result(call_id, task.result()))

    async def _carry_out(self, caller: _Caller, call: wire.Call) -> msgspec.Raw:
        call_id, engine_id = call.call_id, call.engine_id
        served = self._engines.get(engine_id) or self._seat(caller.name).get(engine_id)
        if served is None:
            raise EngineLostError(f"there is no engine {engine_id} here")
        method = methods(served.protocol)[call.method]
        arguments = method.arguments.decode(call.arguments)
        del call  # it keeps the bytes of its whole batch
        ask = partial(getattr(served.engine, method.name), *arguments)
        if method.tenure is not None:
            hold = caller.calls[call_id].hold = engine_id, method.request_id(arguments)
            if method.tenure is Tenure.RELEASES:
                return wire.raw(await self._release(hold, ask))
            self._held[hold] = caller.name
        return wire.raw(await (self._pump(caller, call_id, ask()) if method.is_stream else ask()))

    async def _release(self, hold: tuple[EngineId, RequestId], release: Callable[[], Awaitable[Any]]) -> Any:
        """Never overtakes the calls that were cancelled before it."""
        calls = [call for caller in self._callers.values() for call in caller.calls.values()]
        ending = [call.task for call in calls if call.hold == hold and call.task.cancelling()]
        if ending:
            await asyncio.wait(ending)
        released = await release()
        if released is not False:
            self._held.pop(hold, None)
        return released

    async def _pump(self, caller: _Caller, call_id: int, items: AsyncIterator[Any]) -> None:
        async with aclosing(cast(Any, items)):
            async for item in items:
                caller.post(wire.Item(call_id, wire.raw(item)))


def caller_of(session: str) -> str:
    """A session is named by its caller and something of its own; the scheduler's by that alone."""
    return session.rpartition("/")[0]

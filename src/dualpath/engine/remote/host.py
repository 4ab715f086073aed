"""The node's side: carries out calls on its engines and collects what comes of them until the scheduler asks.

Whatever ended up in the outbox between two polls goes in one message. A decode step delivers its tokens to all its
requests in one turn of the event loop, so a step is one message, however many requests it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_never, cast

import msgspec

from dualpath.core.errors import DualPathError, EngineLostError
from dualpath.core.ids import EngineId, RequestId
from dualpath.core.runtime import Clock, SystemRuntime
from dualpath.engine.api import DecodeEngineClient, PrefillEngineClient
from dualpath.engine.remote import wire
from dualpath.engine.repeated_warning import RepeatedWarning

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    """A call under way, and whose it is."""

    task: asyncio.Task[Any]
    engine_id: EngineId
    request_id: RequestId | None


class EngineServer:
    """Event loop only. Calls belong to a session; opening the next ends all calls of the one before."""

    def __init__(
        self, engines: Mapping[EngineId, PrefillEngineClient | DecodeEngineClient], clock: Clock | None = None
    ) -> None:
        self._engines = engines
        self._bugs = RepeatedWarning(log, clock or SystemRuntime())
        self._session: str | None = None
        self._calls: dict[int, _Running] = {}
        self._outbox: list[wire.ToScheduler] = []
        self._filled = asyncio.Event()
        self._held: dict[tuple[EngineId, RequestId], None] = {}  # requests that may hold something of an engine
        self.num_batches = 0  # messages sent with something in them

    async def open(self, session: str) -> tuple[tuple[EngineId, RequestId], ...]:
        """Begin a session. Returns what requests still hold: ending their calls does not release them.

        Raises EngineLostError where a newer session begins before this one has.
        """
        self._session = session
        self._filled.set()  # a poll of the former session ends
        while self._calls:
            tasks = [call.task for call in self._calls.values()]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        self._check(session)  # one that came meanwhile has the word
        self._outbox.clear()
        self._filled.clear()
        return tuple(self._held)

    def receive(self, session: str, batch: bytes) -> None:
        """Start and cancel calls. Raises EngineLostError for a session that is not the current one."""
        self._check(session)
        for message in wire.decode_to_node(batch):
            if isinstance(message, wire.Call):
                self._start(message)
            elif message.call_id in self._calls:
                self._calls[message.call_id].task.cancel()

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        """What has come up since the last poll; waits for something up to ``max_wait_s``. One poll at a time."""
        self._check(session)
        if not self._outbox:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max_wait_s):
                    await self._filled.wait()
            await asyncio.sleep(0)  # the rest of the step
        if session != self._session:
            return wire.encode([])
        batch, self._outbox = self._outbox, []
        self._filled.clear()
        self.num_batches += bool(batch)
        return wire.encode(batch)

    async def close(self) -> None:
        await self.open("")

    def _check(self, session: str) -> None:
        if session != self._session:
            raise EngineLostError("this session has been replaced by a newer one")

    # -- calls ----------------------------------------------------------------------------------------------------

    def _start(self, call: wire.Call) -> None:
        task = asyncio.create_task(self._carry_out(call))
        self._calls[call.call_id] = _Running(task, call.engine_id, _request_id(call.work))
        task.add_done_callback(partial(self._end, call.call_id))

    def _end(self, call_id: int, task: asyncio.Task[Any]) -> None:
        del self._calls[call_id]
        if task.cancelled():
            self._post(wire.Failed(call_id, wire.Failure.of(EngineLostError("cancelled"))))
        elif (error := task.exception()) is not None:
            if not isinstance(error, DualPathError):
                self._bugs.log("".join(traceback.format_exception(error)))
            self._post(wire.Failed(call_id, wire.Failure.of(error)))
        else:
            self._post(wire.Result(call_id, task.result()))

    def _post(self, message: wire.ToScheduler) -> None:
        self._outbox.append(message)
        self._filled.set()

    async def _carry_out(self, call: wire.Call) -> msgspec.Raw:
        return wire.raw(await self._work(call))

    async def _work(self, call: wire.Call) -> Any:
        engine = self._engines.get(call.engine_id)
        if engine is None:
            raise EngineLostError(f"there is no engine {call.engine_id} here")
        request_id = _request_id(call.work)
        if request_id is None:
            return await _simple(engine, call.work)
        if isinstance(call.work, wire.Release):
            await self._until_cancelled(call.engine_id, request_id)
            released = await engine.release(request_id)
            if released is not False:
                self._held.pop((call.engine_id, request_id), None)
            return released
        self._held[call.engine_id, request_id] = None
        return await self._for_request(engine, call)

    async def _until_cancelled(self, engine_id: EngineId, request_id: RequestId) -> None:
        """A release never overtakes the calls that were cancelled before it."""
        calls = [call for call in self._calls.values() if (call.engine_id, call.request_id) == (engine_id, request_id)]
        if ending := [call.task for call in calls if call.task.cancelling()]:
            await asyncio.wait(ending)

    async def _for_request(self, engine: PrefillEngineClient | DecodeEngineClient, call: wire.Call) -> Any:
        match call.work:
            case wire.ReservePrefill(request_id, num_slots, num_prompt_blocks):
                return await cast(PrefillEngineClient, engine).reserve(request_id, num_slots, num_prompt_blocks)
            case wire.ReserveDecode(request_id, num_slots):
                return await cast(DecodeEngineClient, engine).reserve(request_id, num_slots)
            case wire.Read(request_id, blocks):
                return await engine.read(request_id, blocks)
            case wire.Prefill(order):
                return await self._pump(call.call_id, cast(PrefillEngineClient, engine).prefill(order))
            case wire.Decode(decode_order):
                return await self._pump(call.call_id, cast(DecodeEngineClient, engine).decode(decode_order))
        raise TypeError(call.work)

    async def _pump(self, call_id: int, items: AsyncIterator[Any]) -> None:
        async with aclosing(cast(Any, items)):
            async for item in items:
                self._post(wire.Item(call_id, wire.raw(item)))


def _simple(engine: PrefillEngineClient | DecodeEngineClient, work: wire.Work) -> Coroutine[Any, Any, Any]:
    """Calls that are no request's."""
    match work:
        case wire.AddPeer(peer_metadata):
            return engine.add_peer(peer_metadata)
        case wire.RemovePeer(peer):
            return engine.remove_peer(peer)
        case wire.PeerAtRest(peer):
            return cast(PrefillEngineClient, engine).peer_at_rest(peer)
        case wire.Stop(request_id):
            return cast(DecodeEngineClient, engine).stop(request_id)
        case wire.Stats():
            return engine.stats()
    raise TypeError(work)


def _request_id(work: wire.Work) -> RequestId | None:
    """Whose the call is, if the request may hold something of the engine by it, or no longer."""
    match work:
        case wire.Prefill(order):
            return order.request.request_id
        case wire.Decode(decode_order):
            return decode_order.request.request_id
        case wire.ReservePrefill() | wire.ReserveDecode() | wire.Read() | wire.Release():
            return work.request_id
        case wire.AddPeer() | wire.RemovePeer() | wire.PeerAtRest() | wire.Stop() | wire.Stats():
            return None
    assert_never(work)

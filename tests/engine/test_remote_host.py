"""The node's side of a link: whose session it is while the calls of former ones are still ending."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from dualpath.core.errors import EngineBugError, EngineLostError
from dualpath.core.ids import EngineId, RequestId
from dualpath.engine.remote import wire
from dualpath.engine.remote.host import EngineServer

ENGINE = EngineId("pe0")


class UnwillingEngine:
    """Its calls end some time after they were cancelled."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()

    async def stats(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await self.may_end.wait()


async def test_of_two_sessions_that_wait_for_a_third_to_end_the_newer_one_begins() -> None:
    engine = UnwillingEngine()
    server = EngineServer({ENGINE: cast(Any, engine)})
    await server.open("old")
    server.receive("old", wire.encode([wire.Call(1, ENGINE, wire.Stats())]))
    await asyncio.sleep(0)
    former = asyncio.create_task(server.open("former"))
    await asyncio.sleep(0)
    newest = asyncio.create_task(server.open("newest"))
    await asyncio.sleep(0)
    engine.may_end.set()
    assert await newest == ()
    with pytest.raises(EngineLostError, match="replaced by a newer one"):
        await former
    server.receive("newest", wire.encode([]))
    assert wire.decode_to_scheduler(await server.poll("newest", 0.0)) == []


class SlowToCancel:
    """A prefill engine whose reservation takes a moment to notice that it was cancelled."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.may_end = asyncio.Event()

    async def reserve(self, request_id: RequestId, num_slots: int, num_prompt_blocks: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await self.may_end.wait()
            self.log.append("reserve ended")

    async def release(self, request_id: RequestId) -> bool:
        self.log.append("release")
        return True


async def test_a_release_does_not_overtake_a_call_that_was_cancelled_before_it() -> None:
    engine, request = SlowToCancel(), RequestId("r")
    server = EngineServer({ENGINE: cast(Any, engine)})
    await server.open("s")
    server.receive("s", wire.encode([wire.Call(1, ENGINE, wire.ReservePrefill(request, 1, 1))]))
    await asyncio.sleep(0)
    server.receive("s", wire.encode([wire.Cancel(1), wire.Call(2, ENGINE, wire.Release(request))]))
    for _ in range(5):
        await asyncio.sleep(0)
    assert engine.log == []
    engine.may_end.set()
    batch: list[wire.ToScheduler] = []
    while len(batch) < 2:
        batch += wire.decode_to_scheduler(await server.poll("s", 1.0))
    assert engine.log == ["reserve ended", "release"]


class Unspeakable:
    """Its status cannot be sent."""

    async def stats(self) -> object:
        return object()


async def test_an_answer_that_cannot_be_sent_fails_its_call() -> None:
    server = EngineServer({ENGINE: cast(Any, Unspeakable())})
    await server.open("s")
    server.receive("s", wire.encode([wire.Call(1, ENGINE, wire.Stats())]))
    (failed,) = wire.decode_to_scheduler(await server.poll("s", 1.0))
    assert isinstance(failed, wire.Failed)
    assert isinstance(failed.error.error(), EngineBugError)


async def test_who_polls_for_a_former_session_is_told_and_takes_nothing() -> None:
    server = EngineServer({ENGINE: cast(Any, Unspeakable())})
    await server.open("old")
    await server.open("new")
    server.receive("new", wire.encode([wire.Call(1, ENGINE, wire.Stats())]))
    await asyncio.sleep(0.01)
    with pytest.raises(EngineLostError, match="replaced by a newer one"):
        await server.poll("old", 0.0)
    with pytest.raises(EngineLostError, match="replaced by a newer one"):
        server.receive("old", wire.encode([]))
    assert len(wire.decode_to_scheduler(await server.poll("new", 0.0))) == 1

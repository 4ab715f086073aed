"""The node's side of a link: whose session it is while the calls of former ones are still ending."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from dualpath.core.errors import EngineLostError
from dualpath.core.ids import EngineId
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

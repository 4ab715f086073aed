"""The node's side of a link: whose session it is while the calls of former ones are still ending."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from dualpath.core.errors import EngineBugError, EngineLostError
from dualpath.core.ids import EngineId, RequestId
from dualpath.protocol import wire
from dualpath.protocol.api import NODE, PrefillEngineClient
from dualpath.protocol.host import EngineServer, Served

ENGINE = EngineId("pe0")


def serving(engine: object) -> EngineServer:
    return EngineServer({ENGINE: Served(engine, PrefillEngineClient)})


def call(number: int, method: str, *arguments: Any, engine_id: EngineId = ENGINE) -> wire.Call:
    return wire.Call(number, engine_id, method, wire.raw(arguments))


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
    server = serving(engine)
    await server.open("old")
    server.receive("old", wire.encode([call(1, "stats")]))
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
    server = serving(engine)
    await server.open("s")
    server.receive("s", wire.encode([call(1, "reserve", request, 1, 1)]))
    await asyncio.sleep(0)
    server.receive("s", wire.encode([wire.Cancel(1), call(2, "release", request)]))
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
    server = serving(Unspeakable())
    await server.open("s")
    server.receive("s", wire.encode([call(1, "stats")]))
    (failed,) = wire.decode_to_scheduler(await server.poll("s", 1.0))
    assert isinstance(failed, wire.Failed)
    assert isinstance(failed.error.error(), EngineBugError)


async def test_who_polls_for_a_former_session_is_told_and_takes_nothing() -> None:
    server = serving(Unspeakable())
    await server.open("old")
    await server.open("new")
    server.receive("new", wire.encode([call(1, "stats")]))
    await asyncio.sleep(0.01)
    with pytest.raises(EngineLostError, match="replaced by a newer one"):
        await server.poll("old", 0.0)
    with pytest.raises(EngineLostError, match="replaced by a newer one"):
        server.receive("old", wire.encode([]))
    assert len(wire.decode_to_scheduler(await server.poll("new", 0.0))) == 1


class Bystander:
    """Has more to it than its protocol says."""

    num_ended = 0

    async def stats(self) -> None: ...

    async def release(self, request_id: RequestId) -> bool:
        return True

    async def close(self) -> None:
        self.num_ended += 1


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        (call(1, "close"), EngineBugError),
        (call(1, "stats", "too much"), EngineBugError),
        (call(1, "release", 7), EngineBugError),
        (call(1, "stats", engine_id=EngineId("pe1")), EngineLostError),
    ],
    ids=["no call of the protocol", "too many arguments", "an argument of another type", "no such engine"],
)
async def test_what_cannot_be_asked_fails_its_call_and_no_other(asked: wire.Call, kind: type[Exception]) -> None:
    engine = Bystander()
    server = serving(engine)
    await server.open("s")
    server.receive("s", wire.encode([asked, call(2, "release", RequestId("r"))]))
    batch: list[wire.ToScheduler] = []
    while len(batch) < 2:
        batch += wire.decode_to_scheduler(await server.poll("s", 1.0))
    failed = next(message for message in batch if message.call_id == 1)
    assert isinstance(failed, wire.Failed)
    assert type(failed.error.error()) is kind
    assert isinstance(next(message for message in batch if message.call_id == 2), wire.Result)
    assert engine.num_ended == 0


class Stubborn:
    """Holds what it was asked for until it is told otherwise."""

    may_release = False

    async def read(self, request_id: RequestId, blocks: object) -> None: ...

    async def release(self, request_id: RequestId) -> bool:
        return self.may_release


async def test_a_new_session_is_told_what_requests_hold_until_they_are_released() -> None:
    engine, request = Stubborn(), RequestId("r")
    server = serving(engine)
    for number, asked in enumerate([call(1, "read", request, [], b""), call(2, "release", request)]):
        await server.open(f"s{number}")
        server.receive(f"s{number}", wire.encode([asked]))
        await server.poll(f"s{number}", 1.0)
    assert await server.open("next") == ((ENGINE, request),)
    engine.may_release = True
    server.receive("next", wire.encode([call(3, "release", request)]))
    await server.poll("next", 1.0)
    assert await server.open("last") == ()


class Waiting:
    """A prefill engine whose reservations wait for good, and are released at once."""

    async def reserve(self, request_id: RequestId, num_slots: int, num_prompt_blocks: int) -> None:
        await asyncio.Event().wait()

    async def release(self, request_id: RequestId) -> bool:
        return True


def reserve(number: int, request_id: str) -> bytes:
    return wire.encode([call(number, "reserve", RequestId(request_id), 1, 1)])


async def answers(server: EngineServer, session: str) -> list[object]:
    return list(wire.decode_to_scheduler(await server.poll(session, 0.0)))


async def test_each_caller_has_a_session_of_its_own_and_knows_the_others() -> None:
    server = serving(Waiting())
    await server.open("g1/a")
    await server.open("g2/a")
    server.receive("g1/a", reserve(1, "one"))
    server.receive("g2/a", reserve(1, "two"))
    await asyncio.sleep(0)
    assert await server.open("g1/b") == ((ENGINE, RequestId("one")),), "its own, not the other's"
    server.receive("g2/a", wire.encode([wire.Cancel(1)]))
    await asyncio.sleep(0.01)
    (end,) = await answers(server, "g2/a")
    assert isinstance(end, wire.Failed), "the other's session and its call were still there"
    assert await answers(server, "g1/b") == []
    assert await server.open("scheduler's") == ()
    assert set(server.others("scheduler's")) == {"g1", "g2"}


async def test_a_caller_that_is_ended_has_no_session_and_what_its_requests_hold_is_told() -> None:
    server = serving(Waiting())
    await server.open("g1/a")
    await server.open("s")
    server.receive("g1/a", reserve(1, "one"))
    await asyncio.sleep(0)
    server.receive("s", wire.encode([call(7, "end_caller", "g1", engine_id=NODE)]))
    await asyncio.sleep(0.01)
    (result,) = await answers(server, "s")
    assert isinstance(result, wire.Result)
    assert msgspec.msgpack.decode(result.value) == [[ENGINE, "one"]]
    with pytest.raises(EngineLostError, match="replaced"):
        server.receive("g1/a", reserve(2, "more"))
    assert server.others("s") == ("g1",), "something of it is still held"
    server.receive("s", wire.encode([call(8, "release", RequestId("one"))]))
    await asyncio.sleep(0.01)
    assert server.others("s") == ()
    assert await server.open("g1/b") == (), "it may come again"

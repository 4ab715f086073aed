"""A call is declared once, in a protocol class, and implemented: nothing else must change for it to cross a link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
from tests.protocol.line import NODE, Line
from tests.scheduler.virtual_time import LoopRuntime, run_virtual

from dualpath.core.errors import EngineBugError, EngineSilentError, InvalidRequestError
from dualpath.core.ids import EngineId, RequestId
from dualpath.protocol.api import (
    DecodeCompute,
    DecodeEngineClient,
    DecodeStaging,
    PrefillCompute,
    PrefillEngineClient,
    PrefillStaging,
)
from dualpath.protocol.client import stub
from dualpath.protocol.host import EngineServer, Served
from dualpath.protocol.methods import Tenure, holds, methods, releases
from dualpath.protocol.node_link import LinkConfig, NodeLink

ENGINE, ID = EngineId("toy"), RequestId("r")


@dataclass(frozen=True, slots=True)
class Weight:
    name: str
    grams: int | None = None


class Scales(Protocol):
    async def weigh(self, things: Sequence[Weight], factor: int = 1) -> dict[str, int]: ...


class Counter(Protocol):
    def count(self, to: int) -> AsyncIterator[Weight | None]: ...


class Toy(Scales, Counter, Protocol):
    """Of two parts, with a call of each shape."""

    @holds
    async def keep(self, request_id: RequestId) -> None: ...

    @releases
    async def drop(self, request_id: RequestId) -> bool: ...


class RealToy:
    """All that a new call needs beside its declaration."""

    def __init__(self) -> None:
        self.has_closed = False

    async def weigh(self, things: Sequence[Weight], factor: int = 1) -> dict[str, int]:
        if factor < 0:
            raise InvalidRequestError("no such factor", param="factor")
        return {thing.name: (thing.grams or 0) * factor for thing in things}

    async def count(self, to: int) -> AsyncIterator[Weight | None]:
        try:
            yield None
            for number in range(to):
                yield Weight(str(number), number)
                await asyncio.sleep(0.001)
        finally:
            self.has_closed = True

    async def keep(self, request_id: RequestId) -> None: ...

    async def drop(self, request_id: RequestId) -> bool:
        return True


def play(scenario: Callable[[Toy, RealToy, EngineServer, NodeLink], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        real = RealToy()
        server = EngineServer({ENGINE: Served(real, Toy)})
        link = NodeLink(NODE, Line(server), LinkConfig(), lambda *_: None, lambda _: None, LoopRuntime())
        await link.start()
        await scenario(stub(Toy)(link, ENGINE), real, server, link)
        await link.close()

    run_virtual(run())


def test_a_call_that_is_declared_and_implemented_crosses_a_link() -> None:
    async def scenario(toy: Toy, real: RealToy, _: EngineServer, __: NodeLink) -> None:
        things = (Weight("a", 3), Weight("b"))
        assert await toy.weigh(things, 2) == {"a": 6, "b": 0}
        assert [item async for item in toy.count(2)] == [None, Weight("0", 0), Weight("1", 1)]
        assert real.has_closed

    play(scenario)


def test_arguments_may_be_named_or_left_out() -> None:
    async def scenario(toy: Toy, _: RealToy, __: EngineServer, ___: NodeLink) -> None:
        assert await toy.weigh([Weight("a", 3)]) == {"a": 3}
        assert await toy.weigh(factor=4, things=[Weight("a", 3)]) == {"a": 12}
        assert [item async for item in toy.count(to=0)] == [None]
        with pytest.raises(TypeError, match="things"):
            await toy.weigh(factor=4)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="too many"):
            toy.count(1, 2)  # type: ignore[call-arg]

    play(scenario)


def test_errors_and_an_early_end_cross_as_well() -> None:
    async def scenario(toy: Toy, real: RealToy, _: EngineServer, link: NodeLink) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            await toy.weigh([], -1)
        assert caught.value.param == "factor"
        with pytest.raises(EngineBugError, match="str"):
            await toy.weigh(["no weight"])  # type: ignore[list-item]
        items: Any = toy.count(1_000_000_000)
        assert await anext(items) is None
        await items.aclose()
        assert real.has_closed
        await link.close()
        with pytest.raises(EngineSilentError):
            await toy.weigh([])

    play(scenario)


def test_marks_say_what_a_request_holds() -> None:
    async def scenario(toy: Toy, _: RealToy, server: EngineServer, __: NodeLink) -> None:
        assert list(server._held) == []
        await toy.keep(ID)
        assert list(server._held) == [(ENGINE, ID)]
        assert await toy.drop(ID)
        assert list(server._held) == []

    play(scenario)


@pytest.mark.parametrize("kind", [None, Tenure.HOLDS, Tenure.RELEASES])
def test_the_marks_of_an_engines_calls(kind: Tenure | None) -> None:
    expected = {
        None: {"add_peer", "remove_peer", "peer_at_rest", "stats", "stop", "pause", "resume"}
        | {"weights", "load_weights", "use_weights", "drop_weights"},
        Tenure.HOLDS: {"reserve", "read", "prefill", "decode"},
        Tenure.RELEASES: {"release"},
    }
    calls = [*methods(PrefillEngineClient).values(), *methods(DecodeEngineClient).values()]
    assert {method.name for method in calls if method.tenure is kind} == expected[kind]


@pytest.mark.parametrize(
    ("whole", "staging", "compute"),
    [
        (PrefillEngineClient, PrefillStaging, PrefillCompute),
        (DecodeEngineClient, DecodeStaging, DecodeCompute),
    ],
)
def test_an_engine_is_its_two_parts(whole: type, staging: type, compute: type) -> None:
    assert not methods(staging).keys() & methods(compute).keys()
    assert methods(whole).keys() == methods(staging).keys() | methods(compute).keys()


class ByName(Protocol):
    async def call(self, *, number: int) -> None: ...


class AtOnce(Protocol):
    def call(self) -> int: ...


class Late(Protocol):
    async def call(self) -> AsyncIterator[int]: ...


@pytest.mark.parametrize("protocol", [ByName, AtOnce, Late])
def test_what_cannot_cross_a_link_is_refused_when_it_is_declared(protocol: type) -> None:
    with pytest.raises(TypeError, match=r"\.call: "):
        methods(protocol)

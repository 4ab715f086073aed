"""The scheduler's line to a node: what it calls silent, what it calls gone, and calls that do not end when told to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.scheduler.fixtures import NAMESPACE
from tests.scheduler.virtual_time import LoopRuntime, run_virtual

from dualpath.core.errors import (
    ConfigError,
    DualPathError,
    EngineBugError,
    EngineGoneError,
    EngineLostError,
    EngineSilentError,
)
from dualpath.core.ids import EngineId, NodeId, PeerId
from dualpath.core.plan import Role
from dualpath.core.stats import EngineStats
from dualpath.protocol import wire
from dualpath.protocol.api import DecodeEngineClient, EngineInfo
from dualpath.protocol.client import RemoteDecodeEngine
from dualpath.protocol.host import EngineServer, Served
from dualpath.protocol.node_link import LinkConfig, NodeLink

ENGINE = EngineId("de0")
CONFIG = LinkConfig(heartbeat_s=3.0, lease_s=60.0, kill_silent_s=30.0)


class Engine:
    """Answers ``stats`` as it is told to."""

    def __init__(self) -> None:
        self.answer: Callable[[], Awaitable[EngineStats]] = self._at_once

    async def _at_once(self) -> EngineStats:
        return EngineStats(ENGINE, NodeId("n"), Role.DECODE)

    async def stats(self) -> EngineStats:
        return await self.answer()


class Line:
    """A channel to a node in the same process, which fails as it is told to."""

    def __init__(self) -> None:
        self.trouble: Exception | None = None
        self.num_killed = 0
        self.restart()

    def restart(self, incarnation: str = "a", host: str = "h") -> None:
        self.trouble = None
        self.engine = Engine()
        self.server = EngineServer({ENGINE: Served(self.engine, DecodeEngineClient)})
        info = EngineInfo(ENGINE, PeerId(f"{ENGINE}.{incarnation}"), NodeId("n"), Role.DECODE, 100, 100, b"")
        self.opened = wire.Opened(incarnation, (), None, wire.NodeReport(NAMESPACE, "m", 100, (info,), b"", host, 1))

    async def open(self, session: str) -> bytes:
        self._check()
        await self.server.open(session)
        return wire.encode(self.opened)

    async def send(self, session: str, batch: bytes) -> None:
        self._check()
        self.server.receive(session, batch)

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        self._check()
        answer = await self.server.poll(session, max_wait_s)
        self._check()
        return answer

    def end_process(self) -> None:
        self.num_killed += 1

    def _check(self) -> None:
        if self.trouble is not None:
            raise self.trouble


class Bench:
    def __init__(self) -> None:
        self.line, self.downs = Line(), list[EngineLostError]()
        self.link = NodeLink(
            NodeId("n"), self.line, CONFIG, lambda _, error: self.downs.append(error), lambda _: None, LoopRuntime()
        )
        self.engine = RemoteDecodeEngine(self.link, ENGINE)

    async def error(self) -> type[Exception]:
        """What a call raises now."""
        with pytest.raises(DualPathError) as caught:
            async with asyncio.timeout(1.0):
                await self.engine.stats()
        return caught.type


def scenario(run: Callable[[Bench], Awaitable[None]]) -> None:
    async def play() -> None:
        bench = Bench()
        await bench.link.start()
        await run(bench)
        await bench.link.close()

    run_virtual(play())


def test_a_process_that_has_ended_is_silent_until_its_lease_is_over_and_then_gone() -> None:
    async def run(bench: Bench) -> None:
        bench.line.trouble = EngineGoneError("the process has ended")
        await asyncio.sleep(30.0)
        assert await bench.error() is EngineSilentError
        await asyncio.sleep(35.0)
        assert await bench.error() is EngineGoneError
        assert [type(error) for error in bench.downs] == [EngineSilentError]
        bench.line.restart("b")
        await asyncio.sleep(2.0)
        assert (await bench.engine.stats()).engine_id == ENGINE
        assert bench.engine.info.peer_id == "de0.b"

    scenario(run)


@pytest.mark.parametrize(
    "error", [EngineLostError("x"), EngineBugError("x"), DualPathError("x"), KeyError("x")], ids=repr
)
def test_no_other_error_of_a_channel_makes_a_node_gone(error: Exception) -> None:
    async def run(bench: Bench) -> None:
        bench.line.trouble = error
        await asyncio.sleep(600.0)
        assert await bench.error() is EngineSilentError
        assert bench.line.num_killed == 0

    scenario(run)


def test_a_process_that_is_there_and_does_not_answer_is_ended_once() -> None:
    async def run(bench: Bench) -> None:
        bench.line.trouble = EngineSilentError("it takes a connection and says nothing")
        await asyncio.sleep(29.0)
        assert bench.line.num_killed == 0
        await asyncio.sleep(600.0)
        assert bench.line.num_killed == 1

    scenario(run)


def test_no_error_of_an_engine_makes_it_gone() -> None:
    async def run(bench: Bench) -> None:
        async def gone() -> EngineStats:
            raise EngineGoneError("says who?")

        async def bug() -> EngineStats:
            raise KeyError("a bug")

        bench.line.engine.answer = gone
        assert await bench.error() is EngineLostError
        bench.line.engine.answer = bug
        assert await bench.error() is EngineBugError
        assert bench.link.is_up

    scenario(run)


def test_a_closed_link_says_nothing_of_its_node() -> None:
    async def run(bench: Bench) -> None:
        await bench.link.close()
        assert await bench.error() is EngineSilentError

    scenario(run)


def test_a_call_that_does_not_end_when_cancelled_is_left_to_the_node() -> None:
    async def run(bench: Bench) -> None:
        may_end = asyncio.Event()

        async def unwilling() -> EngineStats:
            while not may_end.is_set():
                try:
                    await may_end.wait()
                except asyncio.CancelledError:
                    continue
            raise EngineLostError("at last")

        bench.line.engine.answer = unwilling
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await bench.engine.stats()
        assert asyncio.get_running_loop().time() - began_s < 60.0
        bench.line.engine.answer = bench.line.engine._at_once
        assert (await bench.engine.stats()).engine_id == ENGINE
        may_end.set()
        await asyncio.sleep(1.0)
        assert (await bench.engine.stats()).engine_id == ENGINE

    scenario(run)


def test_a_successor_on_another_host_waits_for_the_lease_of_the_former() -> None:
    async def run(bench: Bench) -> None:
        bench.line.trouble = DualPathError("cut")
        await asyncio.sleep(5.0)
        bench.line.restart("b", host="other")
        await asyncio.sleep(30.0)
        assert bench.engine.info.peer_id == "de0.a"
        await asyncio.sleep(40.0)
        assert bench.engine.info.peer_id == "de0.b"

    scenario(run)


def test_a_node_that_cannot_begin_says_why() -> None:
    async def play() -> None:
        bench = Bench()
        bench.line.opened = wire.Opened("a", (), wire.Failure.of(ConfigError("no such model")), None)
        with pytest.raises(ConfigError, match="no such model"):
            await bench.link.start()
        await bench.link.close()

    run_virtual(play())

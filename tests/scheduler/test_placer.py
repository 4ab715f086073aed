"""The queue in front of the engines: first come first served, both engines or none, no waiting for a lost group."""

from __future__ import annotations

import asyncio

import pytest
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.errors import InvalidRequestError
from dualpath.core.ids import EngineId, NodeId, PeerId, RequestId
from dualpath.core.plan import Role
from dualpath.protocol.api import EngineInfo
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.demand import Demand, Placement
from dualpath.scheduler.engine_loads import EngineLoads
from dualpath.scheduler.placer import Placer

Pair = tuple[str, str]
MOMENT_S = 0.001


def prefill(name: str, max_prompt_tokens: int = 1000) -> EngineInfo:
    return EngineInfo(EngineId(name), PeerId(name), NodeId(f"node-{name}"), Role.PREFILL, max_prompt_tokens, 0, b"")


def decode(name: str, node: str, device_kv_tokens: int = 1000, max_prompt_tokens: int = 1000) -> EngineInfo:
    return EngineInfo(EngineId(name), PeerId(name), NodeId(node), Role.DECODE, max_prompt_tokens, device_kv_tokens, b"")


class OrderedLoads(EngineLoads):
    """Who was given engines, in this order; waiters that are woken at the same moment run in any order."""

    def __init__(self, engines: list[EngineInfo], config: SchedulerConfig) -> None:
        super().__init__(engines, config)
        self.order: list[RequestId] = []

    def assign(self, request_id: RequestId, engine_id: EngineId, num_tokens: int, *, is_counted: bool = False) -> None:
        super().assign(request_id, engine_id, num_tokens, is_counted=is_counted)
        if request_id not in self.order:
            self.order.append(request_id)


class Bench:
    """A placer and the requests that were given to it, numbered in order of arrival, each at a moment of its own."""

    def __init__(
        self, prefills: list[EngineInfo], decodes: list[EngineInfo], beta_tokens: int = 10_000, alpha_tokens: int = 100
    ) -> None:
        config = SchedulerConfig(beta_tokens=beta_tokens, alpha_tokens=alpha_tokens)
        self.engine_loads = OrderedLoads([*prefills, *decodes], config)
        self.apart: set[Pair] = set()  # engines that are not connected
        self.lost: set[str] = set()
        self.placer = Placer(
            prefills,
            self.engine_loads,
            config,
            lambda p, d: (p, d) not in self.apart,
            lambda engine_id: engine_id in self.lost,
        )
        self.placements: dict[int, Placement] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    @property
    def order(self) -> list[int]:
        return [int(request_id) for request_id in self.engine_loads.order if request_id.isdecimal()]

    def lose(self, *names: str) -> None:
        self.lost.update(names)
        self.placer.reconsider()

    def bring_back(self, name: str) -> None:
        self.lost.remove(name)
        self.placer.reconsider()

    def pair(self, number: int) -> tuple[str, str]:
        """The engines that it was placed on, prefill first."""
        return self.placements[number].prefill, self.placements[number].decode

    async def arrive(self, number: int, num_prompt: int, failed_on: tuple[str, ...] = ()) -> None:
        self.ask(number, num_prompt, failed_on)
        await asyncio.sleep(MOMENT_S)

    def ask(self, number: int, num_prompt: int, failed_on: tuple[str, ...] = ()) -> None:
        avoided = tuple(EngineId(name) for name in failed_on)
        demand = Demand(RequestId(str(number)), number, num_prompt, num_prompt, avoided)
        self.tasks[number] = asyncio.create_task(self._place(demand))

    async def _place(self, demand: Demand) -> None:
        self.placements[demand.sequence] = await self.placer.place(demand)

    def leave(self, number: int) -> None:
        placement = self.placements[number]
        self.engine_loads.release(RequestId(str(number)), placement.prefill)
        self.engine_loads.release(RequestId(str(number)), placement.decode)
        self.placer.wake()

    def part(self, *pairs: Pair) -> None:
        """These pairs are not connected, all others are."""
        self.apart = set(pairs)
        self.placer.reconsider()

    async def settle(self) -> None:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("at_once", [False, True], ids=["one_by_one", "at_once"])
def test_requests_are_spread_over_engines_and_groups(at_once: bool) -> None:
    async def scenario() -> None:
        bench = Bench([prefill("p0"), prefill("p1")], [decode("d0", "a"), decode("d1", "a"), decode("d2", "b")])
        if at_once:
            bench.part(*((p, d) for p in ("p0", "p1") for d in ("d0", "d1", "d2")))
        for number in range(4):
            await bench.arrive(number, 100)
        if at_once:
            assert not bench.order
            bench.part()
        await bench.settle()
        assert bench.order == [0, 1, 2, 3]
        assert [bench.placements[i].prefill for i in range(4)] == ["p0", "p1", "p0", "p1"]
        assert [bench.placements[i].decode for i in range(4)] == ["d0", "d2", "d1", "d2"]

    run_virtual(scenario())


def test_the_head_of_the_line_waits_and_nobody_overtakes() -> None:
    async def scenario() -> None:
        bench = Bench([prefill("p")], [decode("d", "a", device_kv_tokens=500)])
        await bench.arrive(0, 300)
        await bench.arrive(1, 400)
        await bench.arrive(2, 10)
        await bench.settle()
        assert bench.order == [0], "request 2 would fit, but request 1 came first"
        bench.leave(0)
        await bench.settle()
        assert bench.order == [0, 1, 2]

    run_virtual(scenario())


def test_an_overloaded_prefill_engine_gets_nothing_until_it_is_released() -> None:
    async def scenario() -> None:
        bench = Bench([prefill("p")], [decode("d", "a")], beta_tokens=50)
        await bench.arrive(0, 60)
        await bench.arrive(1, 60)
        await bench.settle()
        assert bench.order == [0]
        assert bench.engine_loads.of(EngineId("d")).num_requests == 1, "no decode engine is held meanwhile"
        bench.leave(0)
        await bench.settle()
        assert bench.order == [0, 1]

    run_virtual(scenario())


def test_one_that_waits_for_a_large_engine_does_not_stall_a_small_one() -> None:
    async def scenario() -> None:
        bench = Bench([prefill("small", 100), prefill("large")], [decode("d", "a", 5000)], beta_tokens=50)
        await bench.arrive(0, 500)
        await bench.arrive(1, 500)
        await bench.arrive(2, 10)
        await bench.settle()
        assert bench.order == [0, 2]
        assert bench.placements[2].prefill == "small"
        bench.leave(0)
        await bench.settle()
        assert bench.order == [0, 2, 1]

    run_virtual(scenario())


def test_one_that_no_live_engine_can_hold_does_not_stall_others_and_is_first_when_there_is_one() -> None:
    async def scenario() -> None:
        bench = Bench([prefill("small", 100), prefill("large")], [decode("d", "a", 600)])
        bench.lose("large")
        await bench.arrive(0, 500)
        for number in range(1, 9):
            await bench.arrive(number, 100)
        await bench.settle()
        assert bench.order == [1, 2, 3, 4, 5, 6], "nothing is kept for it"
        bench.bring_back("large")
        for number in range(1, 6):
            bench.leave(number)
            await bench.settle()
        assert bench.order == [1, 2, 3, 4, 5, 6, 0]
        bench.leave(0)
        await bench.settle()
        assert bench.order == [1, 2, 3, 4, 5, 6, 0, 7, 8]

    run_virtual(scenario())


@pytest.mark.parametrize("num_decode", [1, 2])
def test_a_large_request_is_not_starved_by_small_ones(num_decode: int) -> None:
    """They never stop coming; it needs the one large prefill engine, which is mostly overloaded, and much memory."""

    async def scenario() -> None:
        engines = [decode(f"d{i}", f"n{i}", 600) for i in range(num_decode)]
        bench = Bench([prefill("small", 100), prefill("large")], engines, beta_tokens=120)
        running: list[int] = []
        for number in range(100):
            await bench.arrive(number, 500 if number == 20 else 50)
            await bench.settle()
            running = [n for n in bench.order if n in bench.placements]
            if 20 in running:
                break
            if number >= 6 and running:
                bench.leave(running[0])
                del bench.placements[running[0]]
        assert 20 in running
        assert number < 40, "it waited for more than what ran when it came"

    run_virtual(scenario())


def test_decode_memory_found_for_an_older_request_is_not_given_to_a_younger_one() -> None:
    async def scenario() -> None:
        bench = Bench([prefill("small", 100), prefill("large")], [decode("d", "a", 600)], beta_tokens=150)
        bench.engine_loads.assign(RequestId("other"), EngineId("large"), 200)
        await bench.arrive(0, 500)
        await bench.arrive(1, 60)
        await bench.arrive(2, 60)
        await bench.settle()
        assert bench.order == [1], "500 of 600 are kept"
        bench.engine_loads.release(RequestId("other"), EngineId("large"))
        bench.placer.wake()
        await bench.settle()
        assert bench.order == [1, 0]

    run_virtual(scenario())


def test_requests_go_to_engines_that_are_connected_only() -> None:
    async def scenario() -> None:
        bench = Bench([prefill("p0"), prefill("p1")], [decode("d0", "a"), decode("d1", "a"), decode("d2", "b")])
        bench.part(("p0", "d0"), ("p1", "d1"), ("p0", "d2"), ("p1", "d2"))
        for number in range(8):
            await bench.arrive(number, 100)
        await bench.settle()
        assert {(p.prefill, p.decode) for p in bench.placements.values()} == {("p1", "d0"), ("p0", "d1")}

    run_virtual(scenario())


def test_engines_that_failed_a_request_are_its_last_choice() -> None:
    async def scenario() -> None:
        bench = Bench([prefill("p0"), prefill("p1")], [decode("d0", "a"), decode("d1", "b")])
        await bench.arrive(0, 100, failed_on=("p0",))
        await bench.arrive(1, 100, failed_on=("d0", "p1"))
        await bench.settle()
        assert bench.placements[0].prefill == "p1"
        assert bench.pair(1) == ("p0", "d1")
        bench.lose("p1")
        bench.lose("d1")
        await bench.arrive(2, 100, failed_on=("p0", "d0"))
        await bench.settle()
        assert bench.pair(2) == ("p0", "d0")

    run_virtual(scenario())


def test_while_nothing_is_connected_requests_wait() -> None:
    async def scenario() -> None:
        bench = Bench([prefill("p")], [decode("d0", "a"), decode("d1", "b")])
        bench.part(("p", "d0"), ("p", "d1"))
        assert not bench.placer.has_engines
        for number in range(4):
            await bench.arrive(number, 100)
        await bench.settle()
        assert bench.order == []
        bench.part(("p", "d0"))
        await bench.settle()
        assert bench.placer.has_engines
        assert bench.order == [0, 1, 2, 3]
        assert {p.decode for p in bench.placements.values()} == {"d1"}

    run_virtual(scenario())


def test_what_waits_for_a_group_that_is_cut_off_goes_to_another() -> None:
    async def scenario() -> None:
        bench = Bench([prefill("p")], [decode("d0", "a", 500), decode("d1", "b", 500)])
        for number in range(4):
            await bench.arrive(number, 400)
        await bench.settle()
        assert sorted(bench.order) == [0, 1]
        bench.part(("p", "d0"))
        for number in (1, 2, 3):
            bench.leave(number)
            await bench.settle()
        assert [bench.placements[i].decode for i in (2, 3)] == ["d1", "d1"]

    run_virtual(scenario())


def test_a_long_prompt_waits_for_the_engines_that_reach_each_other() -> None:
    """Of a node's two decode engines one is connected with the large prefill engine only, the other with the small."""

    async def scenario() -> None:
        bench = Bench([prefill("small", 100), prefill("large")], [decode("d0", "a"), decode("d1", "a")])
        bench.part(("large", "d0"), ("small", "d1"))
        bench.engine_loads.assign(RequestId("other"), EngineId("d1"), 100)  # d0 would be chosen for all
        await bench.arrive(0, 50)
        await bench.arrive(1, 500)
        await bench.arrive(2, 50)
        await bench.settle()
        assert bench.pair(1) == ("large", "d1")
        assert all((p.prefill, p.decode) not in bench.apart for p in bench.placements.values())
        assert len(bench.placements) == 3

    run_virtual(scenario())


def test_a_node_with_a_long_reading_queue_comes_last() -> None:
    async def scenario() -> None:
        bench = Bench([prefill("p0"), prefill("p1")], [decode("d", "a")])
        bench.engine_loads.start_read(NodeId("node-p0"), 101)
        bench.engine_loads.assign(RequestId("other"), EngineId("p1"), 500)
        await bench.arrive(0, 10)
        await bench.settle()
        assert bench.placements[0].prefill == "p1"

    run_virtual(scenario())


def test_a_resumed_request_goes_before_those_that_came_later() -> None:
    async def scenario() -> None:
        bench = Bench([prefill("p")], [decode("d", "a", device_kv_tokens=500)])
        await bench.arrive(0, 450)
        await bench.arrive(2, 400)
        await bench.arrive(3, 400)
        await bench.settle()
        await bench.arrive(1, 400)
        await bench.settle()
        for number in (0, 1, 2):
            bench.leave(number)
            await bench.settle()
        assert bench.order == [0, 1, 2, 3]

    run_virtual(scenario())


def test_waiting_requests_leave_a_group_that_has_lost_its_engines() -> None:
    async def scenario() -> None:
        bench = Bench([prefill("p")], [decode("d0", "a", 500), decode("d1", "b", 500)])
        for number in range(4):
            await bench.arrive(number, 400)
        await bench.settle()
        assert sorted(bench.order) == [0, 1]
        bench.lose("d0")
        for number in (1, 2, 3):
            bench.leave(number)  # always the one on d1
            await bench.settle()
        assert bench.order == [0, 1, 2, 3]
        assert [bench.placements[i].decode for i in (2, 3)] == ["d1", "d1"]

    run_virtual(scenario())


def test_without_engines_requests_wait_until_one_is_back() -> None:
    async def scenario() -> None:
        bench = Bench([prefill("p")], [decode("d", "a")])
        bench.lose("p")
        bench.lose("d")
        assert not bench.placer.has_engines
        await bench.arrive(0, 10)
        await bench.settle()
        assert bench.placer.num_waiting == 1
        bench.bring_back("p")
        await bench.settle()
        assert bench.placer.num_waiting == 1
        bench.bring_back("d")
        await bench.settle()
        assert bench.order == [0]
        assert bench.placer.has_engines

    run_virtual(scenario())


def test_long_prompts_go_where_they_fit() -> None:
    async def scenario() -> None:
        small, large = decode("d0", "a", max_prompt_tokens=50), decode("d1", "b")
        bench = Bench([prefill("p0", 50), prefill("p1", 2000)], [small, large])
        assert bench.placer.max_prompt_tokens == 999, "one more token must fit the device"
        await bench.arrive(0, 900)
        await bench.settle()
        assert bench.pair(0) == ("p1", "d1")
        with pytest.raises(InvalidRequestError):
            await bench.placer.place(Demand(RequestId("x"), 1, 1000, 1000))

    run_virtual(scenario())


def test_whoever_leaves_in_the_moment_of_being_placed_keeps_nothing() -> None:
    async def scenario() -> None:
        bench = Bench([prefill("p")], [decode("d", "a")])
        num_heard = 0
        for number in range(30):
            bench.ask(number, 10)
            while bench.engine_loads.is_idle:  # noqa: ASYNC110  (an event would come too late)
                await asyncio.sleep(0)
            if number in bench.placements:
                num_heard += 1
                bench.leave(number)
            bench.tasks[number].cancel()
            await bench.settle()
            assert len(bench.placements) == num_heard
            assert bench.engine_loads.is_idle
            assert bench.placer.num_waiting == 0
        assert num_heard < 30, "at times it is placed, and has not heard of it"

    run_virtual(scenario())


def test_whoever_leaves_the_queue_lets_the_next_one_pass() -> None:
    async def scenario() -> None:
        bench = Bench([prefill("p")], [decode("d", "a", device_kv_tokens=500)])
        await bench.arrive(0, 300)
        await bench.arrive(1, 400)
        await bench.arrive(2, 100)
        await bench.settle()
        bench.tasks[1].cancel()
        await bench.settle()
        assert bench.order == [0, 2]
        assert bench.placer.num_waiting == 0

    run_virtual(scenario())

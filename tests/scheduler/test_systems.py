"""The table of systems, engines taken in turn, and several engines on one node."""

from __future__ import annotations

import asyncio

import pytest
from tests.scheduler.virtual_time import run_virtual

from dualpath.config.serve import SYSTEMS as SYSTEM_NAMES
from dualpath.core.errors import ConfigError
from dualpath.core.ids import EngineId, NodeId, PeerId, RequestId
from dualpath.core.plan import Role
from dualpath.protocol.api import EngineInfo
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.demand import Demand, Placement
from dualpath.scheduler.engine_loads import EngineLoads
from dualpath.scheduler.placer import Placer
from dualpath.scheduler.policy.decode_choice import assign_decode, choose_group_in_turn
from dualpath.scheduler.policy.engine_load import EngineLoad, GroupId, group_of
from dualpath.scheduler.policy.path_choice import PATH_POLICIES
from dualpath.scheduler.policy.prefill_choice import PrefillLimits, choose_prefill_in_turn
from dualpath.scheduler.policy.systems import SYSTEMS, Assignment, system_policy
from dualpath.scheduler.policy.waiting import Scope

LIMITS = PrefillLimits(alpha_tokens=100, beta_tokens=1000)


def snapshot(name: str, node: str, tokens: int = 0, queue: int = 0, free_device_tokens: int = 0) -> EngineLoad:
    role = Role.PREFILL if name.startswith("p") else Role.DECODE
    engine = EngineLoad(EngineId(name), group_of(NodeId(node), role), free_device_tokens)
    engine.num_tokens, engine.read_queue_tokens = tokens, queue
    return engine


def info(name: str, node: str) -> EngineInfo:
    role = Role.PREFILL if name.startswith("p") else Role.DECODE
    return EngineInfo(EngineId(name), PeerId(name), NodeId(node), role, 1000, 1000, b"")


# -- the table --------------------------------------------------------------------------------------------------------


def test_the_settings_offer_exactly_the_table():
    assert tuple(SYSTEMS) == SYSTEM_NAMES
    assert all(policy.path in PATH_POLICIES and policy.name == name for name, policy in SYSTEMS.items())


def test_each_step_of_the_ablation_changes_one_thing():
    basic, layerwise, turns, shorter = (SYSTEMS[n] for n in ("basic", "layerwise", "round_robin", "shorter"))
    assert (basic.streams_layers, basic.path) == (False, "prefill")
    assert (layerwise.streams_layers, layerwise.path) == (True, "prefill")
    assert (turns.streams_layers, turns.path) == (True, "round_robin")
    assert {s.prefill_choice for s in (basic, layerwise, turns)} == {Assignment.ROUND_ROBIN}
    assert (shorter.prefill_choice, shorter.decode_choice, shorter.uses_quota) == (*[Assignment.LOAD] * 2, True)
    assert [name for name, policy in SYSTEMS.items() if policy.skips_io] == ["oracle"]


def test_without_a_name_the_path_decides():
    assert system_policy(None, "decode").path == "decode"
    assert system_policy(None, "decode").prefill_choice is Assignment.LOAD
    assert system_policy("basic", "decode").path == "prefill"
    with pytest.raises(ConfigError, match="choose one of basic"):
        system_policy("fastest", "split")


# -- in turn ----------------------------------------------------------------------------------------------------------


def test_prefill_in_turn_looks_at_no_queue_but_skips_the_overloaded():
    engines = [snapshot("p0", "a", queue=10_000), snapshot("p1", "b", tokens=1001), snapshot("p2", "c", tokens=900)]
    assert [choose_prefill_in_turn(engines, LIMITS, turn) for turn in range(4)] == ["p0", "p2", "p2", "p0"]
    assert choose_prefill_in_turn([engines[1]], LIMITS, 0) is None
    assert choose_prefill_in_turn([], LIMITS, 0) is None


def test_decode_in_turn():
    groups = [GroupId("x"), GroupId("y")]
    assert [choose_group_in_turn(groups, turn) for turn in range(3)] == ["x", "y", "x"]
    assert choose_group_in_turn([], 0) is None


class Bench:
    """A placer and what it has decided. Requests come one after the other."""

    def __init__(self, engines: list[EngineInfo], choice: Assignment) -> None:
        config = SchedulerConfig(prefill_choice=choice, decode_choice=choice, alpha_tokens=100, beta_tokens=2000)
        self.engine_loads = EngineLoads(engines, config)
        prefill = [engine for engine in engines if engine.role is Role.PREFILL]
        self.lost: set[str] = set()
        self.placer = Placer(prefill, self.engine_loads, config, is_lost=lambda name: name in self.lost)
        self.placements: dict[int, Placement] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def arrive(self, *lengths: int) -> None:
        for length in lengths:
            number = len(self.tasks)
            self.tasks.append(asyncio.create_task(self._place(Demand(RequestId(str(number)), number, length, length))))
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)

    async def _place(self, demand: Demand) -> None:
        self.placements[demand.sequence] = await self.placer.place(demand)

    def leave(self, number: int) -> None:
        placement = self.placements[number]
        for engine_id in (placement.prefill, placement.decode):
            self.engine_loads.release(RequestId(str(number)), engine_id)
        self.placer.wake()

    def cancel(self) -> None:
        for task in self.tasks:
            task.cancel()


def test_in_turn_the_engine_is_fixed_at_arrival_and_its_line_does_not_hold_up_others():
    async def scenario() -> None:
        engines = [info("p0", "a"), info("p1", "b"), info("d0", "c"), info("d1", "c")]
        bench = Bench(engines, Assignment.ROUND_ROBIN)
        await bench.arrive(900, 100, 200, 100, 100)
        assert {n: p.decode for n, p in bench.placements.items()} == {0: "d0", 1: "d1", 3: "d1"}, "2 waits for d0"
        assert [bench.placements[n].prefill for n in (0, 1, 3)] == ["p0", "p1", "p0"]
        bench.leave(0)
        await bench.arrive()
        assert bench.placements[2].decode == "d0"
        assert bench.placements[4].decode == "d0"

    run_virtual(scenario())


def test_in_turn_a_lost_engine_s_line_moves_on():
    async def scenario() -> None:
        bench = Bench([info("p0", "a"), info("d0", "c"), info("d1", "c")], Assignment.ROUND_ROBIN)
        await bench.arrive(900, 100, 200)
        assert 2 not in bench.placements
        bench.lost.add("d0")
        bench.placer.reconsider()
        await bench.arrive(100)
        assert {bench.placements[n].decode for n in (2, 3)} == {"d1"}

    run_virtual(scenario())


# -- several engines on a node ----------------------------------------------------------------------------------------


def test_engines_of_a_node_share_its_reading_queue_and_its_class():
    """Node a's queue is long: both its engines come after node b's, however little they have to do."""
    engines = [
        snapshot("p0", "a", tokens=0, queue=101),
        snapshot("p1", "a", tokens=10, queue=101),
        snapshot("p2", "b", tokens=700, queue=100),
        snapshot("p3", "b", tokens=800, queue=100),
    ]
    scope, chosen = Scope(engines, LIMITS), []
    for _ in range(6):
        name = scope.ranking.choose()
        assert name is not None
        chosen.append(name)
        scope.add(scope.by_id[name], 1, 200)
    assert chosen == ["p2", "p3", "p2", "p3", "p0", "p1"]


def test_reads_on_either_engine_lengthen_the_one_queue_of_the_node():
    engine_loads = EngineLoads([info("p0", "a"), info("p1", "a"), info("p2", "b")])
    read = engine_loads.start_read(NodeId("a"), 300)
    assert [engine_loads.of(EngineId(f"p{i}")).read_queue_tokens for i in range(3)] == [300, 300, 0]
    engine_loads.end_read(read)
    assert engine_loads.of(EngineId("p1")).read_queue_tokens == 0


def test_a_group_s_leader_balances_inside_the_node():
    engines = [snapshot("d0", "n", tokens=500, free_device_tokens=500), snapshot("d1", "n", free_device_tokens=1000)]
    assert list(assign_decode([100, 100, 300, 100], engines)) == ["d1", "d1", "d1", "d0"]


def test_requests_go_to_the_emptier_node_then_the_emptier_engine():
    async def scenario() -> None:
        decode = [info(f"d{i}", node) for i, node in enumerate("ccee")]
        bench = Bench([info("p0", "a"), info("p1", "a"), *decode], Assignment.LOAD)
        await bench.arrive(*[200] * 4)
        assert {p.decode for p in bench.placements.values()} == {"d0", "d1", "d2", "d3"}
        assert [bench.placements[n].prefill for n in range(4)] == ["p0", "p1", "p0", "p1"]

    run_virtual(scenario())

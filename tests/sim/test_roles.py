"""Nodes that change role: the same world while none changes, everything given back, and a gain where balance shifts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.sim.clusters import small_spec

from dualpath.core.errors import ConfigError
from dualpath.core.plan import Role
from dualpath.scheduler.policy.cost import DecodeCost
from dualpath.scheduler.policy.role_switch import RoleSwitchSettings
from dualpath.sim.cost import ModelCost, PrefillCost
from dualpath.sim.roles import prepare_switching
from dualpath.sim.simulation import simulate
from dualpath.sim.spec import SimSpec
from dualpath.sim.switch_study import ShiftingLoad, study

COST = ModelCost(
    PrefillCost(base_s=0.05, group_token_s=4e-4), DecodeCost(base_s=0.01, per_request_s=2e-3), 20_000, num_layers=40
)
LOAD = ShiftingLoad(agents=60, turns=12, read_append_tokens=1500, read_generate_tokens=10, write_generate_tokens=400)
EAGER = RoleSwitchSettings(window_s=2.0, dwell_s=4.0)


def spec_of(num_prefill: int, num_decode: int) -> SimSpec:
    return small_spec(num_prefill, num_decode, workload={"agents": LOAD.agents, "ttft_slo_s": 2.0, "tpot_slo_s": 0.03})


def test_without_a_change_nodes_of_both_roles_are_as_nodes_of_one() -> None:
    never = RoleSwitchSettings(high_pressure=1e9)
    plain = simulate(spec_of(2, 3), COST, "shorter", LOAD.trajectories())
    both, controller = prepare_switching(spec_of(2, 3), COST, "shorter", LOAD.trajectories(), never, 1.0)
    both.run()
    assert not controller.changes
    assert both.observer.end_s == pytest.approx(plain.observer.end_s, rel=0.01)


@pytest.mark.parametrize("system", ["shorter", "split"])
def test_changes_lose_no_request_and_no_memory(system: str) -> None:
    done, controller = prepare_switching(spec_of(1, 4), COST, system, LOAD.trajectories(), EAGER, 1.0)
    done.run()
    assert controller.changes
    assert done.observer.num_requests == LOAD.agents * LOAD.turns
    for engine in done.cluster.decode:
        assert engine.num_requests == engine.kv.used_tokens == engine.batch_requests == 0
    for node in controller.nodes:
        assert node.num_requests() == 0
    assert controller.count(Role.PREFILL) >= 1
    assert controller.count(Role.DECODE) >= 1


def test_a_node_between_roles_takes_nothing_and_comes_back_after_the_cost_of_a_change() -> None:
    done, controller = prepare_switching(spec_of(1, 4), COST, "shorter", LOAD.trajectories(), EAGER, 7.0)
    while not controller.changes:
        done.agenda.run(done.agenda.now_s + 1.0)
    asked = controller.changes[0]
    node = next(one for one in controller.nodes if one.name == asked.node)
    before = node.num_requests()
    while node.is_changing:
        assert node.num_requests() <= before
        before = node.num_requests()
        done.agenda.run(done.agenda.now_s + 0.1)
    assert done.agenda.now_s >= asked.asked_s + 7.0
    assert node.role is asked.role


def test_changing_roles_beats_every_fixed_ratio_on_a_load_that_shifts() -> None:
    found = study(spec_of(2, 3), COST, "shorter", LOAD, EAGER, 1.0, lambda _: None)
    best = min(row.jct_s for row in found.changing)
    assert best < 0.95 * found.best_fixed.jct_s
    assert max(row.jct_s for row in found.changing) < 0.8 * found.worst_fixed.jct_s


def test_what_cannot_change_role_is_refused() -> None:
    with pytest.raises(ConfigError, match="in turn"):
        prepare_switching(spec_of(1, 2), COST, "basic", LOAD.trajectories(), EAGER, 1.0)
    online = replace(spec_of(1, 2), workload=replace(spec_of(1, 2).workload, aps=1.0))
    with pytest.raises(ConfigError, match="aps"):
        prepare_switching(online, COST, "shorter", LOAD.trajectories(), EAGER, 1.0)
    wide = small_spec(2, 2, cluster={"prefill_group_engines": 4})
    with pytest.raises(ConfigError, match="prefill_group"):
        prepare_switching(wide, COST, "shorter", LOAD.trajectories(), EAGER, 1.0)

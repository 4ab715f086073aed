"""The policy for changing roles: it ends under constant demand, keeps its bounds, and answers a shift."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath.core.errors import ConfigError
from dualpath.core.ids import NodeId
from dualpath.core.plan import Role
from dualpath.scheduler.policy.role_switch import NodeLoad, RoleSwitchSettings, RoleSwitchState, RoleWindow, decide

demands = st.floats(0, 1000)


def nodes(num_prefill: int, num_decode: int) -> list[NodeLoad]:
    roles = [Role.PREFILL] * num_prefill + [Role.DECODE] * num_decode
    return [NodeLoad(NodeId(f"n{index}"), role, 100 * index) for index, role in enumerate(roles)]


def play(
    rounds: list[tuple[float, float]], num_prefill: int, num_decode: int, wanted: RoleSwitchSettings
) -> list[tuple[float, Role, int, int]]:
    """(time, role, P, D) of every change; a change takes effect at once."""
    state, changes = RoleSwitchState(), []
    for index, (prefill, decode) in enumerate(rounds):
        now_s = index * wanted.window_s
        window = RoleWindow(now_s, prefill, decode, nodes(num_prefill, num_decode))
        change, state = decide(window, state, wanted)
        if change is not None:
            step = 1 if change.role is Role.PREFILL else -1
            num_prefill, num_decode = num_prefill + step, num_decode - step
            changes.append((now_s, change.role, num_prefill, num_decode))
    return changes


@given(demands, demands, st.integers(1, 20), st.integers(1, 20))
def test_constant_demand_is_answered_in_one_direction_and_then_left_alone(
    prefill: float, decode: float, num_prefill: int, num_decode: int
) -> None:
    changes = play([(prefill, decode)] * 120, num_prefill, num_decode, RoleSwitchSettings(dwell_s=0))
    assert len({role for _, role, _, _ in changes}) <= 1
    assert len(changes) < num_prefill + num_decode


@given(st.lists(st.tuples(demands, demands), max_size=200), st.integers(1, 8), st.integers(1, 8), st.integers(0, 60))
def test_whatever_the_demand_bounds_and_dwelling_are_kept(
    rounds: list[tuple[float, float]], num_prefill: int, num_decode: int, dwell_s: int
) -> None:
    wanted = RoleSwitchSettings(dwell_s=dwell_s, min_prefill=2, min_decode=2)
    changes = play(rounds, num_prefill, num_decode, wanted)
    for _, role, left_prefill, left_decode in changes:
        assert (left_decode if role is Role.PREFILL else left_prefill) >= 2
    times = [now_s for now_s, *_ in changes]
    assert all(later - earlier >= dwell_s for earlier, later in pairwise(times))


def test_a_shift_moves_nodes_there_and_back() -> None:
    changes = play([(8.0, 1.0)] * 40 + [(1.0, 8.0)] * 80, 4, 4, RoleSwitchSettings())
    assert changes[0][1] is Role.PREFILL
    assert changes[-1][1] is Role.DECODE
    assert changes[-1][2] < 4 < max(num_prefill for _, _, num_prefill, _ in changes)


def test_one_window_is_not_enough() -> None:
    trembling = [(8.0, 1.0), (1.0, 1.0)] * 50
    assert play(trembling, 4, 4, RoleSwitchSettings()) == []


def test_little_demand_changes_nothing_however_uneven() -> None:
    assert play([(3.9, 0.0)] * 50, 4, 4, RoleSwitchSettings()) == []


def test_the_node_that_drains_fastest_goes_and_nobody_while_one_is_on_its_way() -> None:
    wanted = RoleSwitchSettings(patience=1, dwell_s=0)
    loads = [NodeLoad(NodeId("p"), Role.PREFILL, 0)]
    loads += [NodeLoad(NodeId(name), Role.DECODE, tokens) for name, tokens in (("a", 50), ("b", 10), ("c", 90))]
    change, state = decide(RoleWindow(0.0, 9.0, 0.1, loads), RoleSwitchState(), wanted)
    assert change is not None
    assert (change.node_id, change.role) == ("b", Role.PREFILL)
    assert decide(RoleWindow(5.0, 9.0, 0.1, loads, num_changing=1), state, wanted)[0] is None


@pytest.mark.parametrize(
    ("name", "value"), [("margin", 1.0), ("patience", 0), ("window_s", 0.0), ("dwell_s", -1.0), ("min_decode", 0)]
)
def test_bad_settings_are_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        RoleSwitchSettings(**{name: value})  # type: ignore[arg-type]

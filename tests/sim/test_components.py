"""Costs, clocks, queues and histograms, each against something simpler."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath.core.ids import EngineId, NodeId
from dualpath.scheduler.policy.cost import DecodeCost, ForwardCost
from dualpath.scheduler.policy.prefill_choice import PrefillLimits
from dualpath.scheduler.policy.quota import ComputeQuota
from dualpath.sim.cost import PrefillCost, capped_pairs
from dualpath.sim.engines.decode import DecodeClock, DecodeEngine
from dualpath.sim.engines.fifo_link import ComputeNic, FifoLink
from dualpath.sim.engines.node import Node, Staging, StorageNic
from dualpath.sim.engines.prefill import PrefillEngine
from dualpath.sim.metrics import Histogram, TimeAverage
from dualpath.sim.requests.agenda import NOTHING, Agenda, Event
from dualpath.sim.requests.agent import Agent
from dualpath.sim.requests.fetch_times import FetchTimes
from dualpath.sim.requests.placing import Scope
from dualpath.sim.requests.request import Request
from dualpath.trace.trajectory import Round

PAIRS = st.tuples(st.integers(0, 100_000), st.integers(1, 10_000))


# -- agenda -----------------------------------------------------------------------------------------------------------


class Note(Event):
    def __init__(self, time_s: float, log: list[object], name: object, then: Sequence[Event] = NOTHING) -> None:
        super().__init__(time_s)
        self.log, self.name, self.then = log, name, then

    def fire(self) -> Sequence[Event]:
        self.log.append(self.name)
        return self.then


def test_events_fire_by_time_then_in_the_order_of_their_making() -> None:
    log: list[object] = []
    agenda = Agenda()
    follower = Note(1.0, log, "follows")
    agenda.add([Note(2.0, log, "late"), Note(1.0, log, "first", [follower]), Note(1.0, log, "second")])
    agenda.run(until_s=1.5)
    assert log == ["first", "second", "follows"]
    assert agenda.now_s == 1.5
    agenda.run()
    assert log[-1] == "late"
    assert (agenda.now_s, agenda.num_fired) == (2.0, 4)


def test_nothing_happens_in_the_past() -> None:
    log: list[object] = []
    agenda = Agenda()
    agenda.add([Note(2.0, log, "now", [Note(1.0, log, "before")])])
    with pytest.raises(ValueError, match="past"):
        agenda.run()
    later = Agenda()
    later.add([Note(1.0, log, "once")])
    later.run()
    with pytest.raises(ValueError, match="past"):
        later.add([Note(0.5, log, "before")])


# -- costs ------------------------------------------------------------------------------------------------------------


@given(st.lists(PAIRS, min_size=1, max_size=5))
def test_a_profiled_engine_costs_what_its_profile_says(batch: list[tuple[int, int]]) -> None:
    profile = ForwardCost(base_s=0.01, per_token_s=1e-4, per_pair_s=1e-8)
    cost = PrefillCost.of(profile)
    assert cost.forward_s([batch]) == pytest.approx(profile.forward_s(batch), rel=1e-12)
    assert cost.attention_s(batch) == pytest.approx(profile.attention_s(batch), rel=1e-12)


@given(st.integers(0, 3000), st.integers(1, 500), st.integers(1, 2000))
def test_a_cap_on_keys_is_the_sum_over_the_new_tokens(num_cached: int, num_new: int, top_k: int) -> None:
    """Of min(cached + x, k), each new token seeing half of itself."""
    by_token = sum(min(num_cached + x + 0.5, top_k) for x in range(num_new))
    assert capped_pairs(num_cached, num_new, top_k) == pytest.approx(by_token, abs=0.13)
    assert capped_pairs(num_cached, num_new, 10**6) == capped_pairs(num_cached, num_new, None)


@given(st.lists(PAIRS, max_size=8), st.floats(1e-4, 2.0), st.one_of(st.none(), st.integers(1, 5000)))
def test_filling_a_batch_decides_what_the_quota_decides(
    requests: list[tuple[int, int]], quota_s: float, top_k: int | None
) -> None:
    """With any cost, incrementally or from the start each time."""
    quota = ComputeQuota(PrefillCost(token_s=4e-5, pair_s=3e-8, index_pair_s=2e-9, top_k=top_k), quota_s)
    fill, chosen = quota.begin(), []
    for num_cached, wanted in requests:
        allowed = fill.take(num_cached, wanted)
        assert allowed == quota(chosen, num_cached, wanted)
        if allowed:
            chosen.append((num_cached, allowed))
    assert fill.used_s == pytest.approx(quota.cost.attention_s(chosen))  # type: ignore[attr-defined]


def test_a_group_waits_for_its_slowest_gpu_and_shares_its_experts() -> None:
    cost = PrefillCost(base_s=1.0, token_s=0.1, group_token_s=0.2)
    assert cost.forward_s([[(0, 10)], [(0, 4)], [], []]) == pytest.approx(1.0 + 10 * 0.1 + 0.2 * 14 / 4)


# -- decode -----------------------------------------------------------------------------------------------------------


def decode_engines(count: int) -> list[DecodeEngine]:
    node = Node(NodeId("n"), StorageNic(1.0, 1.0), FifoLink(1.0), FifoLink(1.0), Staging(1))
    return [DecodeEngine(EngineId(f"d{i}"), node, ComputeNic(1.0), Staging(10**9)) for i in range(count)]


def prefill_engine() -> PrefillEngine:
    node = Node(NodeId("n"), StorageNic(1.0, 1.0), FifoLink(1.0), FifoLink(1.0), Staging(1))
    return PrefillEngine(EngineId("p"), node, ComputeNic(1.0), Staging(10**9), 1)


def decoding(engine: DecodeEngine, generate: int) -> Request:
    request = Request(Agent(0, [Round(1, 1)]), 0, 0.0, 0.0, 100, generate, 0)
    request.decode = engine
    return request


def finish_times(clock: DecodeClock, joins: list[tuple[float, Request]]) -> dict[int, float]:
    """By request, looking only when the clock says so."""
    found: dict[int, float] = {}
    waiting = sorted(joins, key=lambda join: join[0])
    while waiting or clock.next_end_s() < math.inf:
        if waiting and waiting[0][0] <= clock.next_end_s():
            now_s, request = waiting.pop(0)
            clock.join(now_s, request)
        else:
            now_s = clock.next_end_s()
            found |= {id(request): now_s for request in clock.finish(now_s)}
    return found


def test_one_request_takes_its_tokens_times_the_step() -> None:
    engines = decode_engines(1)
    clock = DecodeClock(engines, DecodeCost(0.02, 0.01))
    request = decoding(engines[0], 11)
    assert finish_times(clock, [(5.0, request)])[id(request)] == pytest.approx(5.0 + 10 * 0.03)


def test_a_second_request_slows_the_first_down_while_it_is_there() -> None:
    """Alone 1 s a token, together 2 s: 2 tokens alone, 3 together (6 s), then the last 5 alone."""
    engines = decode_engines(1)
    clock = DecodeClock(engines, DecodeCost(0.0, 1.0))
    long, short = decoding(engines[0], 11), decoding(engines[0], 4)
    found = finish_times(clock, [(0.0, long), (2.0, short)])
    assert found[id(short)] == pytest.approx(8.0)
    assert found[id(long)] == pytest.approx(13.0)


def test_a_lockstep_group_goes_at_the_pace_of_its_fullest_engine() -> None:
    engines = decode_engines(2)
    clock = DecodeClock(engines, DecodeCost(0.0, 1.0))
    crowded = [decoding(engines[0], 3), decoding(engines[0], 3)]
    alone = decoding(engines[1], 3)
    found = finish_times(clock, [(0.0, request) for request in (*crowded, alone)])
    assert list(found.values()) == [pytest.approx(4.0)] * 3


@pytest.mark.parametrize("seed", range(5))
def test_the_clock_agrees_with_small_steps_of_time(seed: int) -> None:
    source = random.Random(seed)
    engines = decode_engines(2)
    cost = DecodeCost(0.02, 0.003, 1e-6)
    clock = DecodeClock(engines, cost)
    joins = [(source.uniform(0, 3), decoding(source.choice(engines), source.randint(2, 60))) for _ in range(25)]
    expected, left = {}, {id(r): r.generate - 1.0 for _, r in joins}
    tick_s, now_s = 1e-3, 0.0
    while left:
        running = [r for join_s, r in joins if join_s <= now_s and id(r) in left]
        batches = [[r for r in running if r.decode is engine] for engine in engines]
        step_s = max(cost.step_s(len(b), sum(r.prompt + r.generate // 2 for r in b)) for b in batches)
        now_s += tick_s
        for request in running:
            left[id(request)] -= tick_s / step_s
            if left[id(request)] <= 0:
                expected[id(request)] = now_s
                del left[id(request)]
    found = finish_times(clock, joins)
    assert found.keys() == expected.keys()
    assert all(found[key] == pytest.approx(expected[key], abs=0.05) for key in found)


def test_a_request_that_is_dropped_says_how_far_it_came() -> None:
    engines = decode_engines(1)
    clock = DecodeClock(engines, DecodeCost(1.0, 0.0))
    request, other = decoding(engines[0], 10), decoding(engines[0], 10)
    clock.join(0.0, request)
    clock.join(0.0, other)
    assert clock.drop(4.5, request) == 4
    assert engines[0].batch_requests == 1
    assert clock.next_end_s() == pytest.approx(9.0)


# -- memory -----------------------------------------------------------------------------------------------------------


def test_memory_is_given_in_the_order_in_which_it_was_asked_for() -> None:
    memory = Staging(100)
    first, large, small = (decoding(decode_engines(1)[0], 2) for _ in range(3))
    assert memory.take(first, 60)
    assert not memory.take(large, 50)
    assert not memory.take(small, 10), "there would be room, but it is not its turn"
    assert list(memory.release(60)) == [large, small]
    assert (memory.used_tokens, memory.peak_tokens) == (60, 60)


# -- fetch times ------------------------------------------------------------------------------------------------------


def overload(scope: Scope) -> None:
    for engine in scope.by_id.values():
        scope.add(engine, 1, 1)


def test_leaders_ask_in_turn_and_the_overloaded_are_passed_over() -> None:
    limits = PrefillLimits(alpha_tokens=0, beta_tokens=0)
    scopes = [Scope([prefill_engine()], limits) for _ in range(4)]
    times = FetchTimes(scopes, 4, interval_s=0.4)
    overload(scopes[2])
    found = times.next_after(0.15)
    assert found is not None
    assert (pytest.approx(0.3), scopes[3]) == found
    times.fetched(found[0])
    again = times.next_after(0.3)
    assert again == (pytest.approx(0.4), scopes[0]), "once per tick"
    for scope in scopes:
        overload(scope)
    assert times.next_after(1.0) is None


# -- metrics ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-5, 1e5), min_size=1, max_size=200))
def test_a_percentile_is_off_by_at_most_half_a_percent(values: list[float]) -> None:
    histogram = Histogram()
    histogram.add(np.array(values))
    for percent in (0, 50, 90, 100):
        exact = sorted(values)[int((len(values) - 1) * percent / 100)]
        assert histogram.percentile(percent) == pytest.approx(exact, rel=0.0051)
    assert histogram.mean == pytest.approx(sum(values) / len(values))


def test_zero_is_a_value() -> None:
    histogram = Histogram()
    histogram.add(np.zeros(3))
    assert histogram.summary((50,)) == {"p50": 0.0, "mean": 0.0}
    assert Histogram().summary((50,)) == {}


def test_a_time_average_weighs_by_time() -> None:
    average = TimeAverage()
    average.change(1.0, 10)
    average.change(3.0, -5)
    assert average.mean(4.0) == pytest.approx((2 * 10 + 5) / 4)
    assert average.peak == 10

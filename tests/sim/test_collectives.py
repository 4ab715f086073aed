"""Two classes on a compute NIC: closed forms against the fluid model, and what classes are worth in a simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sim.clusters import COST, long_agents, run, small_spec
from tests.sim.fair_link import FairLink, Traffic

from dualpath.sim.engines.collectives import Collectives
from dualpath.sim.simulation import Simulation
from dualpath.trace.trajectory import Round, Trajectory

RATE = 100.0
NUM_BURSTS = 400


def executed(kv_bytes: float, model_bytes: float, length_s: float, share: float) -> tuple[float, float]:
    """When a forward of evenly spread bursts, each waited for, and KV that begins with it have ended, flow by flow."""
    link, now_s, kv_end_s = FairLink(RATE, model_share=share), 0.0, 0.0
    gap_s = (length_s - model_bytes / RATE) / NUM_BURSTS
    link.start(0.0, kv_bytes, Traffic.KV, "kv")

    def wait(until_s: float, name: str = "") -> float:
        nonlocal kv_end_s
        while (end_s := link.next_end_s()) < math.inf and end_s <= until_s:
            ended = link.finish(end_s)
            kv_end_s = end_s if "kv" in ended else kv_end_s
            if name in ended:
                return end_s
        return until_s

    for _ in range(NUM_BURSTS):
        now_s = wait(now_s + gap_s)
        link.start(now_s, model_bytes / NUM_BURSTS, Traffic.MODEL, "burst")
        now_s = wait(math.inf, "burst")
    wait(math.inf)
    return now_s, kv_end_s


@given(st.floats(1, 2000), st.floats(1, 900), st.booleans())
def test_the_closed_forms_are_the_fluid_model_s(kv_bytes: float, model_bytes: float, has_classes: bool) -> None:
    length_s = 10.0  # in which the link carries 1,000 bytes
    both = Collectives(RATE, 1.0, 1.0, has_classes)
    contended = min(model_bytes, both.contended_bytes(kv_bytes, model_bytes, length_s))
    end_s, kv_end_s = executed(kv_bytes, model_bytes, length_s, both.share)
    burst_s = model_bytes / NUM_BURSTS / RATE
    assert end_s == pytest.approx(length_s + both.delay_s(contended), abs=3 * burst_s)
    if end_s < kv_end_s:  # nothing is lost: all bytes have passed when the last has
        assert kv_end_s == pytest.approx((kv_bytes + model_bytes) / RATE, abs=3 * (length_s / NUM_BURSTS))


def test_nothing_is_delayed_where_nothing_else_moves() -> None:
    one = Collectives(RATE, 1.0, 1.0, has_classes=False)
    assert one.contended_bytes(0, 100, 1.0) == one.contended_bytes(100, 0, 1.0) == 0.0
    assert one.delay_s(0.0) == 0.0


def test_kv_gets_what_is_left_and_never_starves() -> None:
    one = Collectives(RATE, 1.0, 1.0, has_classes=True)
    assert one.left(25, 1.0) == 0.75
    assert one.left(1e9, 1.0) == pytest.approx(0.01)


def simulated(agents: list[Trajectory], has_classes: bool, **collective_bytes: float) -> Simulation:
    spec = small_spec(cluster={"traffic_classes": has_classes}, workload={"agents": len(agents)})
    return run(spec, "shorter", replace(COST, **collective_bytes), agents)


def test_classes_keep_kv_from_slowing_forwards() -> None:
    """A long history and few new tokens: KV takes half of a forward's time."""
    agents = long_agents(1, num_rounds=20)
    none = simulated(agents, True)
    on, off = (simulated(agents, classes, prefill_collective_bytes=2e6) for classes in (True, False))
    busy_s = [sum(group.busy_s for group in one.cluster.groups) for one in (none, on, off)]
    assert 0 < busy_s[1] - busy_s[0] < (busy_s[2] - busy_s[0]) / 20
    assert none.observer.moved == on.observer.moved == off.observer.moved
    carried = [sum(one.nic.out.num_bytes for one in each.cluster.prefill) for each in (none, on)]
    assert carried[1] > carried[0], "collectives cross the same NICs"


def test_classes_keep_kv_from_slowing_decode_steps() -> None:
    """Prompts come to engines that decode."""
    agents = [Trajectory(f"a{index}", (Round(20_000, 200),) * 3) for index in range(12)]
    tpot_s = [
        simulated(agents, classes, decode_collective_bytes=num_bytes).observer.histograms["tpot"].mean
        for num_bytes, classes in ((0, True), (100e6, True), (100e6, False))
    ]
    assert 0 < tpot_s[1] - tpot_s[0] < (tpot_s[2] - tpot_s[0]) / 20


def test_oracle_moves_nothing_that_could_be_in_the_way() -> None:
    cost = replace(COST, prefill_collective_bytes=8e6, decode_collective_bytes=50e6)
    spec = small_spec(cluster={"traffic_classes": False})
    assert run(spec, "oracle", cost).observer.end_s == run(spec, "oracle").observer.end_s

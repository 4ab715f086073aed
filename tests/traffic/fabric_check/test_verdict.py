"""From samples to a verdict, and plans that measure nothing refused. No network here."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import msgspec
import pytest

from dualpath.core.errors import ConfigError
from dualpath.traffic.fabric_check.plan import CheckPlan, Load
from dualpath.traffic.fabric_check.verdict import CheckResult, ClusterPhase, RankSample

PLAN = CheckPlan(world=2, nic_bytes_per_s=100e6)  # collectives offer 128 KiB / 5 ms = 26.2 MB/s: 73.8 MB/s are left
OFFERED = 128 * 1024 / 5e-3


def phase(load: Load, p99_ms: float, kv_share: float = 0.0) -> ClusterPhase:
    """Two ranks, of which the second moves twice the KV."""
    kv_bytes = int((PLAN.nic_bytes_per_s - OFFERED) * kv_share * PLAN.phase_s)
    latencies = (1e-3,) * 90 + (p99_ms * 1e-3,) * 10
    samples = [RankSample(latencies, PLAN.phase_s, kv_bytes * times) for times in (1, 2)]
    return ClusterPhase.of(load, samples, PLAN)


def result(*phases: ClusterPhase, **plan: Any) -> CheckResult:
    return CheckResult(dataclasses.replace(PLAN, **plan), phases, has_real_time=True)


def test_a_phase_pools_the_ranks_latencies_and_takes_the_slowest_direction() -> None:
    measured = phase(Load.KV, 4.0, kv_share=0.85)
    assert (measured.p50_s, measured.p99_s) == pytest.approx((1e-3, 4e-3))
    assert measured.collective_bytes_per_s == pytest.approx(OFFERED)
    assert measured.kv_share == pytest.approx(0.85, rel=1e-6)
    assert measured.kv_bytes_per_s[1] == 2 * measured.kv_bytes_per_s[0]


def test_what_is_left_counts_from_what_collectives_really_sent() -> None:
    """Twice as long for the same collectives: they take half as much of the NIC, and the same KV is half the rate."""
    samples = [RankSample((1e-3,) * 100, PLAN.phase_s * 2, 100_000_000)] * 2
    slow = ClusterPhase.of(Load.KV, samples, PLAN)
    assert slow.collective_bytes_per_s == pytest.approx(OFFERED / 2)
    assert slow.kv_share == pytest.approx(10e6 / (PLAN.nic_bytes_per_s - OFFERED / 2))


def test_an_idle_phase_has_no_share() -> None:
    assert phase(Load.IDLE, 4.0).kv_share is None


@pytest.mark.parametrize(
    ("kv_p99_ms", "kv_share", "isolated", "served"),
    [(4.5, 0.85, True, True), (4.7, 0.85, False, True), (4.0, 0.79, True, False), (9.0, 0.1, False, False)],
)
def test_verdicts(kv_p99_ms: float, kv_share: float, isolated: bool, served: bool) -> None:
    outcome = result(*[phase(Load.IDLE, 4.0), phase(Load.KV, kv_p99_ms, kv_share)] * 3)
    assert (outcome.is_isolated, outcome.is_kv_served, outcome.holds) == (isolated, served, isolated and served)


def test_one_disturbed_phase_does_not_decide() -> None:
    quiet, kv = phase(Load.IDLE, 4.0), phase(Load.KV, 4.1, 0.85)
    assert result(quiet, kv, quiet, phase(Load.KV, 40.0, 0.2), quiet, kv).holds
    assert not result(quiet, phase(Load.KV, 40.0, 0.2), quiet, phase(Load.KV, 40.0, 0.2), quiet, kv).holds


def test_unclassed_phases_are_told_but_do_not_decide() -> None:
    phases = [phase(Load.IDLE, 4.0), phase(Load.KV, 4.0, 0.85), phase(Load.UNCLASSED_KV, 12.0, 0.9)]
    outcome = result(*phases * 3, contrast=True)
    assert outcome.holds
    told = json.loads(json.dumps(outcome.to_json()))
    assert told["p99_ratio_without_classes"] == pytest.approx(3.0)
    assert told["holds"] is True
    assert [entry["load"] for entry in told["phases"]] == ["idle", "kv", "unclassed_kv"] * 3


def test_a_result_survives_its_way_between_processes() -> None:
    outcome = result(phase(Load.IDLE, 4.0), phase(Load.KV, 4.0, 0.85))
    assert msgspec.json.decode(msgspec.json.encode(outcome), type=CheckResult) == outcome


def test_loads_take_turns() -> None:
    assert PLAN.phases == (Load.IDLE, Load.KV) * 3
    contrast = dataclasses.replace(PLAN, contrast=True, num_rounds=2)
    assert contrast.phases == (Load.IDLE, Load.KV, Load.UNCLASSED_KV) * 2


def test_fast_nics_get_more_in_flight() -> None:
    assert PLAN.num_transfers == 2
    assert dataclasses.replace(PLAN, nic_bytes_per_s=50e9).num_transfers == 24  # a millisecond is 50 MB


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"world": 1}, "--world: must be 2 to 1024, not 1"),
        ({"message_bytes": 1}, "--message-kib"),
        ({"period_s": 0.0}, "--period-ms"),
        ({"phase_s": 0.05}, "--phase-s: must be 0.1"),
        ({"phase_s": 0.11, "period_s": 0.01}, "--phase-s: 0.11 s has only 11 collectives; 20 are needed"),
        ({"num_rounds": 0}, "--rounds"),
        ({"nic_bytes_per_s": 50e6}, "more than half of a NIC of 400 Mbit/s"),
        ({"deadline_s": 0.0}, "--deadline-s"),
    ],
)
def test_plans_that_measure_nothing_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason.replace("(", r"\(")):
        dataclasses.replace(PLAN, **fields)

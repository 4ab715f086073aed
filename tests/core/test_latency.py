"""Counts of latencies: every duration in one bucket."""

from __future__ import annotations

import pytest

from dualpath.core.latency import BOUNDS_S, Latencies


def counted(*durations_s: float) -> Latencies:
    latencies = Latencies()
    for duration_s in durations_s:
        latencies.add(duration_s)
    return latencies


def test_a_bound_belongs_to_its_bucket() -> None:
    snapshot = counted(0.0, 0.001, 0.00101, 30.0, 31.0).snapshot()
    assert snapshot.counts == (2, 1, *[0] * (len(BOUNDS_S) - 3), 1, 1)
    assert snapshot.total_s == pytest.approx(61.00201)


def test_a_snapshot_does_not_change() -> None:
    latencies = counted(0.5)
    snapshot = latencies.snapshot()
    latencies.add(0.5)
    assert sum(snapshot.counts) == 1
    assert sum(latencies.snapshot().counts) == 2

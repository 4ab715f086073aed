"""How long things took, counted in buckets: constant memory, one addition for each."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # upper, inclusive


@dataclass(frozen=True, slots=True)
class LatencyCounts:
    """A snapshot. ``counts``: one for each bound, and one for what took longer; () where nothing was counted yet."""

    counts: tuple[int, ...] = ()
    total_s: float = 0.0

    def __add__(self, other: LatencyCounts) -> LatencyCounts:
        if not (self.counts and other.counts):
            return self if self.counts else other
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return LatencyCounts(counts, self.total_s + other.total_s)


NOTHING_COUNTED = LatencyCounts()


class Latencies:
    """One thread adds, anybody takes snapshots."""

    __slots__ = ("_counts", "_total_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._total_s = 0.0

    def add(self, duration_s: float) -> None:
        self._counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self._total_s += duration_s

    def snapshot(self) -> LatencyCounts:
        return LatencyCounts(tuple(self._counts), self._total_s)

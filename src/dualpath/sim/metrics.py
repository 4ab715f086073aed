"""What a simulation measures: rows of numbers per request that become histograms before they become many.

A full-size run has millions of requests. Their times are collected in a flat buffer and folded into logarithmic
histograms every few thousand rows: a percentile is off by at most half a bin, 0.5 %, means are exact.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FLUSH_ROWS = 8192
BIN_GROWTH = 1.01  # each bin's upper edge over its lower one: percentiles are off by at most half of that
SMALLEST_S = 1e-6  # everything below counts as 0
NUM_BINS = 3000  # up to SMALLEST_S * BIN_GROWTH**NUM_BINS, more than a hundred days

FloatArray: TypeAlias = npt.NDArray[np.float64]


class Histogram:
    """Counts of non-negative seconds in logarithmic bins, with their exact sum."""

    def __init__(self) -> None:
        self.counts = np.zeros(NUM_BINS + 1, dtype=np.int64)  # the first: 0
        self.total_s = 0.0

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        return self.total_s / max(1, self.count)

    def add(self, values_s: FloatArray) -> None:
        self.total_s += float(values_s.sum())
        bins = np.zeros(len(values_s), dtype=np.int64)
        large = values_s >= SMALLEST_S
        bins[large] = 1 + (np.log(values_s[large] / SMALLEST_S) / np.log(BIN_GROWTH)).astype(np.int64)
        self.counts += np.bincount(np.minimum(bins, NUM_BINS), minlength=NUM_BINS + 1)

    def percentile(self, percent: float) -> float:
        """The middle of the bin of the value at that rank. Raises ValueError if there are none."""
        if not self.count:
            raise ValueError("no values, no percentile")
        rank = (self.count - 1) * percent / 100
        bin_index = int(np.searchsorted(np.cumsum(self.counts), rank, side="right"))
        return 0.0 if bin_index == 0 else SMALLEST_S * BIN_GROWTH ** (bin_index - 0.5)

    def summary(self, percents: Sequence[int]) -> dict[str, float]:
        """{"p50": ..., "mean": ...}; empty if there are no values."""
        if not self.count:
            return {}
        return {**{f"p{percent}": self.percentile(percent) for percent in percents}, "mean": self.mean}


class Rows:
    """Rows of numbers, handed on as a matrix of [rows, columns] before they become many."""

    def __init__(self, num_columns: int, fold: Callable[[FloatArray], None]) -> None:
        self._num_columns, self._fold = num_columns, fold
        self._rows: array[float] = array("d")
        self._limit = FLUSH_ROWS * num_columns

    def add(self, row: Sequence[float]) -> None:
        self._rows.extend(row)
        if len(self._rows) >= self._limit:
            self.flush()

    def flush(self) -> None:
        """Everything added has been handed on."""
        self._fold(np.frombuffer(self._rows, dtype=np.float64).reshape(-1, self._num_columns))
        self._rows = array("d")


class TimeAverage:
    """A quantity that changes at moments: its mean and peak over time."""

    def __init__(self) -> None:
        self.value = 0
        self.peak = 0
        self._integral = 0.0
        self._last_s = 0.0
        self._start_s = 0.0

    def change(self, now_s: float, delta: int) -> None:
        self._integral += self.value * (now_s - self._last_s)
        self._last_s = now_s
        self.value += delta
        if self.value > self.peak:
            self.peak = self.value

    def restart(self, now_s: float) -> None:
        """Forget the mean so far, at the end of a warm-up."""
        self.change(now_s, 0)
        self._integral, self._start_s = 0.0, now_s

    def mean(self, now_s: float) -> float:
        elapsed_s = now_s - self._start_s
        return (self._integral + self.value * (now_s - self._last_s)) / elapsed_s if elapsed_s > 0 else 0.0

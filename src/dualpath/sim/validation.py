"""A real run beside a simulated one: the same numbers of both, relative errors, and whether they are small enough.

Both sides are entries of the rollout's JSON. What must agree: the time to completion, and the bytes that every storage
NIC read and wrote. Times to first token are shown beside them; a percentile of a few dozen requests carries no verdict.

Where a policy looks at load, a moment's difference sends a request elsewhere: the live system does not move the same
bytes twice through a NIC, nor does the simulator when requests take a millisecond more. So both run several times;
means are compared for times, for bytes ranges, which must meet within the tolerance. Equal runs are a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualpath.core.plan import Role

JCT_TOLERANCE = 0.10
BYTES_TOLERANCE = 0.02
TTFT = ("mean", "p50", "p99")
BYTES = {"storage_read_bytes": "read", "storage_write_bytes": "written"}


@dataclass(frozen=True, slots=True)
class Row:
    """One number of both worlds."""

    what: str
    unit: str  # "s" or "bytes"
    real: tuple[float, ...]  # of every repetition
    simulated: tuple[float, ...]
    tolerance: float | None = None  # relative; None: no verdict
    is_ranged: bool = False  # compare ranges, not means

    @property
    def real_mean(self) -> float:
        return _mean(self.real)

    @property
    def simulated_mean(self) -> float:
        return _mean(self.simulated)

    @property
    def spread(self) -> float:
        """Of the real runs: largest minus smallest, over the mean. What the real system itself cannot repeat."""
        return _spread(self.real)

    @property
    def simulated_spread(self) -> float:
        return _spread(self.simulated)

    @property
    def rel_error(self) -> float:
        """Of the simulated mean; infinite where the real one is zero and this is not."""
        if self.real_mean == 0:
            return 0.0 if self.simulated_mean == 0 else math.inf
        return self.simulated_mean / self.real_mean - 1

    @property
    def holds(self) -> bool:
        if self.tolerance is None:
            return True
        if not self.is_ranged:
            return abs(self.rel_error) <= self.tolerance
        least, most = min(self.real) * (1 - self.tolerance), max(self.real) * (1 + self.tolerance)
        return least <= max(self.simulated) and min(self.simulated) <= most

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "unit": self.unit,
            "real": self.real_mean,
            "real_runs": list(self.real),
            "real_spread": self.spread,
            "simulated": self.simulated_mean,
            "simulated_runs": list(self.simulated),
            "simulated_spread": self.simulated_spread,
            "rel_error": self.rel_error if math.isfinite(self.rel_error) else None,
            "tolerance": self.tolerance,
            "holds": self.holds,
        }


Entries = Sequence[Mapping[str, Any]]


def compare(real: Entries, simulated: Entries) -> list[Row]:
    """Rows of one system on one cluster, from every run's entry."""
    return [*_times(real, simulated), *_bytes(real, simulated)]


def _times(real: Entries, simulated: Entries) -> Iterator[Row]:
    jct = tuple(run["jct_s"] for run in real), tuple(run["jct_s"] for run in simulated)
    yield Row("JCT", "s", *jct, JCT_TOLERANCE)
    for name in TTFT:
        both = tuple(run["ttft_s"][name] for run in real), tuple(run["ttft_s"][name] for run in simulated)
        yield Row(f"TTFT {name}", "s", *both)


def _bytes(real: Entries, simulated: Entries) -> Iterator[Row]:
    """Every NIC that moved anything; those of a role together, where it has several, for which of two equal nodes gets
    a request is chance; and all NICs together."""
    for key, verb in BYTES.items():
        nodes = list(simulated[0][key])
        for node in nodes:
            yield from _moved(f"{node} {verb}", real, simulated, key, [node])
        for role in Role:
            same = [node for node in nodes if node.startswith(role.value)]
            if len(same) > 1:
                yield from _moved(f"{role.value} NICs {verb}", real, simulated, key, same)
        totals = tuple(sum(run[key].values()) for run in real), tuple(sum(run[key].values()) for run in simulated)
        yield Row(f"all NICs {verb}", "bytes", *totals, BYTES_TOLERANCE)


def _moved(what: str, real: Entries, simulated: Entries, key: str, nodes: Sequence[str]) -> Iterator[Row]:
    both = [tuple(sum(run[key].get(node, 0) for node in nodes) for run in runs) for runs in (real, simulated)]
    if any((*both[0], *both[1])):
        yield Row(what, "bytes", both[0], both[1], BYTES_TOLERANCE, True)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _spread(values: Sequence[float]) -> float:
    mean = _mean(values)
    return (max(values) - min(values)) / mean if mean else 0.0


@dataclass(frozen=True, slots=True)
class Overhead:
    """Seconds that a request costs its hosts, beside everything that the simulator has a model of."""

    admission_s: float = 0.0  # before the first token
    handover_s: float = 0.0  # after it


def overhead(real: Mapping[str, Any], simulated: Mapping[str, Any]) -> Overhead:
    """What is missing for each request of an agent that was alone in both worlds, so that nothing waited for others."""
    whole_s = (real["jct_s"] - simulated["jct_s"]) / real["requests"]
    first_s = real["ttft_s"]["mean"] - simulated["ttft_s"]["mean"]
    admission_s = max(0.0, first_s)
    return Overhead(admission_s, max(0.0, whole_s - admission_s))

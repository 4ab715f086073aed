"""Numbers about numbers: percentiles with their mean, and how evenly nodes shared the reading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

PERCENTILES = (50, 90, 99)
BALANCE_FRACTION = 0.8  # of a run: towards its end agents finish, and idle nodes say nothing about the policy

Series = Mapping[str, Sequence[float]]  # node -> bytes in each window, all of the same length


def percentile(values: Sequence[float], percent: float) -> float:
    """Between the two nearest values, linearly. Raises ValueError if there are none."""
    if not values:
        raise ValueError("no values, no percentile")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarize(values: Iterable[float | None], percents: Sequence[int] = PERCENTILES) -> dict[str, float]:
    """{"p50": ..., "mean": ...}; None is left out; empty if nothing is left."""
    known = [value for value in values if value is not None]
    if not known:
        return {}
    summary = {f"p{percent}": percentile(known, percent) for percent in percents}
    return {**summary, "mean": sum(known) / len(known)}


def phase_summary(phases: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """For every phase that any request was in; a request that never was in it counts as 0 s."""
    names = list(dict.fromkeys(name for one in phases for name in one))
    return {name: summarize((one.get(name, 0.0) for one in phases), (50, 99)) for name in names}


def snic_max_avg(series: Series, fraction: float = BALANCE_FRACTION) -> float | None:
    """Most loaded node / mean over all nodes, per window, averaged over the first ``fraction`` of the run.

    Windows in which nobody reads are left out: they have no busiest node. None if there is no other. 1 is perfect
    balance, the number of nodes the worst: one node reads everything.
    """
    num_windows = min((len(windows) for windows in series.values()), default=0)
    ratios = []
    for index in range(max(1, int(num_windows * fraction)) if num_windows else 0):
        loads = [windows[index] for windows in series.values()]
        if sum(loads) > 0:
            ratios.append(max(loads) * len(loads) / sum(loads))
    return sum(ratios) / len(ratios) if ratios else None

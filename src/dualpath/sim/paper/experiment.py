"""What an experiment is: the simulations it wants, at full or reduced size, and what it makes of their outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from dualpath.sim.paper.rows import Report
from dualpath.sim.paper.run import Outcome, Run, Setting

Outcomes = Mapping[Run, Outcome]


@dataclass(frozen=True, slots=True)
class Experiment:
    """``report`` is called with the outcomes of all that ``runs`` named, and of other experiments' runs."""

    id: str
    title: str
    runs: Callable[[bool], Iterable[Run]]  # the argument: at full size
    report: Callable[[Outcomes, bool], Report]


REDUCED_660B = "run on 1P2D with half the agents"


def run_660b(is_full: bool, system: str, agents: int, settings: tuple[Setting, ...] = (), trace: str = "64K") -> Run:
    """So many agents on 2P4D; reduced: half of both. JCT hardly depends on scale (the scale experiment)."""
    if is_full:
        return Run("660B", system, 2, 4, agents, trace=trace, settings=settings)
    return Run("660B", system, 1, 2, agents // 2, trace=trace, settings=settings)


def online_660b(is_full: bool, system: str, aps: float) -> Run:
    """Agents arriving at 2P4D; reduced: half of both, and a shorter warm-up and window."""
    if is_full:
        window: tuple[Setting, ...] = (("workload.warm_up_s", 1500.0), ("workload.duration_s", 900.0))
        return Run("660B", system, 2, 4, aps=aps, settings=window)
    return Run("660B", system, 1, 2, aps=aps / 2, settings=REDUCED_WINDOW)


REDUCED_WINDOW: tuple[Setting, ...] = (("workload.warm_up_s", 1500.0), ("workload.duration_s", 600.0))


def note(is_full: bool, reduced: str, text: str = "") -> str:
    """A row's note: what was reduced comes first."""
    parts = [text] if is_full else [f"reduced: {reduced}", text]
    return "; ".join(part for part in parts if part)

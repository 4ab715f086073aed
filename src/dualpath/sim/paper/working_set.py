"""Section 8.2: the KV that all running agents will ask for again, at two rates of arrival, 660B."""

from __future__ import annotations

from dualpath.sim.paper.experiment import Experiment, Outcomes, note, online_660b
from dualpath.sim.paper.rows import Report, Row, bars_of
from dualpath.sim.paper.run import Run

PAPER_GB = {0.1: 69.0, 0.45: 681.0}
LAW = "counted token by token in the simulation; the paper multiplies arrival rate, mean JCT and half the final length"


def _runs(is_full: bool) -> list[Run]:
    return [online_660b(is_full, "shorter", aps) for aps in PAPER_GB]


def _report(outcomes: Outcomes, is_full: bool) -> Report:
    scale = 1 if is_full else 2  # half the arrivals: half the working set
    rows = []
    for aps, paper in PAPER_GB.items():
        one = outcomes[online_660b(is_full, "shorter", aps)]
        where = note(is_full, "half the arrivals, doubled; short window", LAW)
        rows.append(
            Row(f"working_set.{aps:g}", f"{aps:g} APS", "GB", paper, scale * one.working_set_bytes / 1e9, False, where)
        )
    return Report(rows, [bars_of("Working set", "GB", rows)])


EXPERIMENT = Experiment("working_set", "Section 8.2: working set (660B)", _runs, _report)

"""Figure 12: from Basic to DualPath, one technique at a time, 660B, 64K; the mean over 1,024 and 2,048 agents."""

from __future__ import annotations

from dualpath.sim.paper.experiment import REDUCED_660B, Experiment, Outcomes, note, run_660b
from dualpath.sim.paper.rows import Report, Row, bars_of
from dualpath.sim.paper.run import Run

STEPS = (
    ("layerwise", "+ layerwise prefill", -17.21, True),
    ("round_robin", "+ dual-path loading", -38.19, False),
    ("shorter", "+ scheduling", -45.62, False),
)


def _agents(is_full: bool) -> tuple[int, ...]:
    return (1024, 2048) if is_full else (1024,)


def _runs(is_full: bool) -> list[Run]:
    systems = ("basic", *(step[0] for step in STEPS))
    return [run_660b(is_full, system, agents) for agents in _agents(is_full) for system in systems]


def _report(outcomes: Outcomes, is_full: bool) -> Report:
    where = note(is_full, f"1,024 agents alone, {REDUCED_660B}", "percentage points count, not the relative error")
    rows = []
    for system, what, paper, fitted in STEPS:
        changes = [
            100 * (outcomes[run_660b(is_full, system, n)].jct_s / outcomes[run_660b(is_full, "basic", n)].jct_s - 1)
            for n in _agents(is_full)
        ]
        why = "the HBM for KV of Basic was chosen for this" if fitted else ""
        text = "; ".join(part for part in (where, why) if part)
        rows.append(Row(f"ablation.{system}", what, "% of JCT", paper, sum(changes) / len(changes), fitted, text))
    gains = [Row(row.id, row.what, "", -(row.paper or 0), -(row.ours or 0)) for row in rows]
    return Report(rows, [bars_of("JCT saved against Basic", "%", gains)])


EXPERIMENT = Experiment("ablation", "Ablation (660B)", _runs, _report)

"""Figure 9: appends and generations made longer, 660B, 1,024 agents, 64K."""

from __future__ import annotations

from dualpath.sim.paper.experiment import REDUCED_660B, Experiment, Outcomes, note, run_660b
from dualpath.sim.paper.rows import Lines, Report, Row
from dualpath.sim.paper.run import Run

FULL_FACTORS, REDUCED_FACTORS = (1.0, 1.5, 2.0, 3.0), (1.0, 3.0)
SCALES = {"append": "workload.append_scale", "generate": "workload.generate_scale"}


def factors(is_full: bool) -> tuple[float, ...]:
    return FULL_FACTORS if is_full else REDUCED_FACTORS


def _run(is_full: bool, system: str, what: str, factor: float) -> Run:
    settings: tuple[tuple[str, float | str], ...] = () if factor == 1 else ((SCALES[what], factor),)
    return run_660b(is_full, system, 1024, settings)


def _runs(is_full: bool) -> list[Run]:
    return [_run(is_full, s, w, f) for w in SCALES for f in factors(is_full) for s in ("basic", "shorter")]


def _report(outcomes: Outcomes, is_full: bool) -> Report:
    gains = {
        (what, factor): outcomes[_run(is_full, "basic", what, factor)].jct_s
        / outcomes[_run(is_full, "shorter", what, factor)].jct_s
        for what in SCALES
        for factor in factors(is_full)
    }
    where = note(is_full, f"factors 1 and 3 alone, {REDUCED_660B}")
    over = [gains["append", factor] for factor in factors(is_full)]
    rows = [
        Row("fig9.append.low", "appends x1..x3, Basic/DualPath, smallest", "", 1.82, min(over), False,
            where),
        Row("fig9.append.high", "appends x1..x3, Basic/DualPath, largest", "", 1.99, max(over), False, where),
        Row("fig9.generate.x3", "generations x3, Basic/DualPath", "", None, gains["generate", 3.0], False,
            "; ".join(part for part in (where, "the paper gives no number; decoding hides reading") if part)),
    ]  # fmt: skip
    ours = {f"{what} longer": [(f, gains[what, f]) for f in factors(is_full)] for what in SCALES}
    paper = {"append, largest of range": [(1.0, 1.99), (3.0, 1.99)], "append, smallest": [(1.0, 1.82), (3.0, 1.82)]}
    return Report(rows, [Lines("Gain over length", "factor on lengths", "Basic/DualPath", paper, ours)])


EXPERIMENT = Experiment("fig9", "Figure 9: longer appends and generations (660B)", _runs, _report)

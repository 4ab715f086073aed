"""Figure 7: job completion time of three models over agents and context length, all agents starting at once."""

from __future__ import annotations

from dualpath.sim.paper.experiment import REDUCED_660B, Experiment, Outcomes, note, run_660b
from dualpath.sim.paper.rows import Bars, Report, Row, bars_of
from dualpath.sim.paper.run import Run

SYSTEMS = ("basic", "shorter", "oracle")
NAMES = {"basic": "Basic", "shorter": "DualPath", "oracle": "Oracle"}
FULL_CELLS: dict[str, tuple[tuple[int, str], ...]] = {
    "660B": ((512, "64K"), (1024, "64K"), (2048, "64K"), (1024, "48K"), (1024, "32K")),
    "27B": ((512, "64K"), (1024, "64K"), (1024, "32K")),
    "32B": ((256, "64K"), (512, "64K"), (512, "32K")),
}
REDUCED_CELLS: dict[str, tuple[tuple[int, str], ...]] = {
    "660B": ((1024, "64K"),),
    "27B": ((512, "64K"),),
    "32B": ((128, "32K"),),
}
NODES = {"27B": (1, 1), "32B": (1, 2)}


def cells(is_full: bool) -> dict[str, tuple[tuple[int, str], ...]]:
    return FULL_CELLS if is_full else REDUCED_CELLS


def _run(is_full: bool, model: str, system: str, agents: int, trace: str) -> Run:
    if model == "660B":
        return run_660b(is_full, system, agents, trace=trace)
    return Run(model, system, *NODES[model], agents, trace=trace)


def _runs(is_full: bool) -> list[Run]:
    return [
        _run(is_full, model, system, *cell)
        for model, found in cells(is_full).items()
        for cell in found
        for system in SYSTEMS
    ]


def _report(outcomes: Outcomes, is_full: bool) -> Report:
    ours = {
        (model, cell, system): outcomes[_run(is_full, model, system, *cell)].jct_s
        for model, found in cells(is_full).items()
        for cell in found
        for system in SYSTEMS
    }

    def ratios(model: str, over: str, under: str) -> list[float]:
        return [ours[model, cell, over] / ours[model, cell, under] for cell in cells(is_full)[model]]

    big, small, dense = (
        note(is_full, f"one cell, {' at '.join(map(str, REDUCED_CELLS[model][0]))}{how}")
        for model, how in (("660B", f", {REDUCED_660B}"), ("27B", ""), ("32B", ""))
    )
    slower = ratios("27B", "shorter", "oracle")
    no_number = "the paper gives no number: 'similar to 27B'; constants of this model are not fitted"
    gains = {model: max(ratios(model, "basic", "shorter")) for model in FULL_CELLS}
    near = max(ratios("660B", "shorter", "oracle"))
    rows = [
        Row("fig7.660B.gain", "660B, Basic/DualPath, largest", "", 1.87, gains["660B"], True, big),
        Row("fig7.660B.oracle", "660B, DualPath/Oracle, largest", "", 1.0, near, False,
            "; ".join(part for part in (big, "the paper says 'near Oracle'") if part)),
        Row("fig7.27B.gain", "27B, Basic/DualPath, largest", "", 1.78, gains["27B"], False, small),
        Row("fig7.27B.oracle.low", "27B, DualPath/Oracle, smallest", "", 1.09, min(slower), False,
            "; ".join(part for part in (small, "few agents leave storage idle; the paper's smallest cell is not stated")
                      if part)),
        Row("fig7.27B.oracle.high", "27B, DualPath/Oracle, largest", "", 1.85, max(slower), False, small),
        Row("fig7.32B.gain", "32B, Basic/DualPath, largest", "", None, gains["32B"], False,
            "; ".join(part for part in (dense, no_number) if part)),
    ]  # fmt: skip
    figures = [bars_of("Ratios of JCT", "", rows)]
    for model, found in cells(is_full).items():
        bars = {f"{n} agents, {trace}: {NAMES[s]}": ours[model, (n, trace), s] for n, trace in found for s in SYSTEMS}
        figures.append(Bars(f"JCT, {model}", "s", {}, bars))
    return Report(rows, figures)


EXPERIMENT = Experiment("fig7", "Figure 7: offline, three models", _runs, _report)

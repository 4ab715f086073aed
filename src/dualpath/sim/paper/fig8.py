"""Figure 8: Basic and DualPath over the P/D ratio, 27B. Where the storage bandwidth is equal, so should JCT be."""

from __future__ import annotations

from dualpath.sim.paper.experiment import Experiment, Outcomes, note
from dualpath.sim.paper.rows import Bars, Report, Row
from dualpath.sim.paper.run import Run

RATIOS = ((1, 1), (2, 1), (1, 2))
FULL_CELLS = ((512, "64K"), (1024, "64K"), (1024, "32K"))  # agents, MaxLen
REDUCED_CELLS = ((512, "64K"), (1024, "32K"))
FIT_NOTE = "the paper does not state its agents and lengths here"


def cells(is_full: bool) -> tuple[tuple[int, str], ...]:
    return FULL_CELLS if is_full else REDUCED_CELLS


def run_of(system: str, nodes: tuple[int, int], cell: tuple[int, str]) -> Run:
    return Run("27B", system, *nodes, cell[0], trace=cell[1])


def _runs(is_full: bool) -> list[Run]:
    return [run_of(s, nodes, cell) for cell in cells(is_full) for nodes in RATIOS for s in ("basic", "shorter")]


def _report(outcomes: Outcomes, is_full: bool) -> Report:
    def jct_s(system: str, nodes: tuple[int, int], cell: tuple[int, str] = (512, "64K")) -> float:
        return outcomes[run_of(system, nodes, cell)].jct_s

    gains = {
        (nodes, cell): jct_s("basic", nodes, cell) / jct_s("shorter", nodes, cell)
        for cell in cells(is_full)
        for nodes in RATIOS
    }
    where = note(is_full, "512 agents at 64K and 1,024 at 32K", FIT_NOTE)
    rows = [
        Row("fig8.mean", "Basic/DualPath, mean", "", 1.64, sum(gains.values()) / len(gains), True, where),
        Row("fig8.max", "Basic/DualPath, largest", "", 2.46, max(gains.values()), True, where),
    ]
    for key, what, left, right in (
        ("basic", "Basic 1P1D / Basic 1P2D", ("basic", (1, 1)), ("basic", (1, 2))),
        ("across", "DualPath 1P1D / Basic 2P1D", ("shorter", (1, 1)), ("basic", (2, 1))),
        ("dualpath", "DualPath 2P1D / DualPath 1P2D", ("shorter", (2, 1)), ("shorter", (1, 2))),
    ):
        fitted = key == "dualpath"
        rows.append(Row(f"fig8.equal.{key}", what, "", 1.0, jct_s(*left) / jct_s(*right), fitted, "512 agents, 64K"))
    names = {"basic": "Basic", "shorter": "DualPath"}
    ours = {f"{names[s]} {p}P{d}D": jct_s(s, (p, d)) for s in names for p, d in RATIOS}
    equal = {"Basic 1P1D / Basic 1P2D": 1.0, "DualPath 1P1D / Basic 2P1D": 1.0, "DualPath 2P1D / DualPath 1P2D": 1.0}
    speed = Bars("Speed-up and equal pairs", "", {"mean speed-up": 1.64, "largest": 2.46, **equal},
                 {"mean speed-up": rows[0].ours or 0, "largest": rows[1].ours or 0,
                  **{row.what: row.ours or 0 for row in rows[2:]}})  # fmt: skip
    return Report(rows, [speed, Bars("JCT, 512 agents, 64K", "s", {}, ours)])


EXPERIMENT = Experiment("fig8", "Figure 8: P/D ratios (27B)", _runs, _report)

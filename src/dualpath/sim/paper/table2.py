"""Table 2: the means of the traces. The paper's are not public; the synthetic ones were made to have these means."""

from __future__ import annotations

from dataclasses import asdict

from dualpath.sim.paper.experiment import Experiment, Outcomes
from dualpath.sim.paper.rows import Report, Row
from dualpath.trace.stats import describe
from dualpath.trace.synth import SHAPES, synthesize

COLUMNS = {"turns": "", "append_tokens": "tokens", "generate_tokens": "tokens", "total_tokens": "tokens",
           "context_tokens": "tokens"}  # fmt: skip


def _report(_: Outcomes, __: bool) -> Report:
    rows = []
    for name, shape in SHAPES.items():
        ours, paper = asdict(describe(synthesize(name)).paper), asdict(shape.table)
        for column, unit in COLUMNS.items():
            what = f"{name}, {column.removesuffix('_tokens')}"
            rows.append(
                Row(f"table2.{name}.{column}", what, unit, paper[column], ours[column], True, "synthetic trace")
            )
    return Report(rows, text="500 trajectories of each, the seed used in all experiments.")


EXPERIMENT = Experiment("table2", "Table 2: traces", lambda _: (), _report)

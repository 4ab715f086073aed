"""``dualpath sim paper``: the paper's tables and figures, simulated, beside the published numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualpath.cli.command import add_command
from dualpath.config.fields import Options, setting
from dualpath.report.outputs import check_outputs, write_output

if TYPE_CHECKING:
    from dualpath.sim.paper.experiment import Experiment
    from dualpath.sim.paper.rows import Report


class _Options(Options):
    """Simulate the evaluation of arXiv 2602.21548: a row for each published number, ours beside it."""

    json: Path | None = setting(None, metavar="OUT", help="write rows and constants for programs")
    html: Path | None = setting(None, metavar="OUT", help="write one page with tables and plots")
    only: str | None = setting(
        None,
        metavar="ID,...",
        may_be_empty=True,  # is no experiment either: what there are is said then
        none_means="all",
        help="these experiments, e.g. table1,fig7,ablation",
    )
    full: bool = setting(False, help="full size, up to 1,152 GPUs; takes far longer")


def add(actions: Any) -> None:
    add_command(actions, "paper", "the paper's tables and figures, simulated", _run, _Options)


def _run(options: _Options) -> int:
    from dualpath.sim.compiled import require_current

    require_current()
    from dualpath.cluster.signals import interrupted_by_signals
    from dualpath.sim.paper.catalogue import choose
    from dualpath.sim.paper.constants import constants_json
    from dualpath.sim.paper.page import render

    chosen = choose(options.only)
    check_outputs({"--json": options.json, "--html": options.html})
    with interrupted_by_signals():
        reports = _run_all(chosen, options.full)
    rows = [row for _, report in reports for row in report.rows]
    if options.json is not None:
        document = {"rows": [row.to_json() for row in rows], "constants": constants_json()}
        write_output(options.json, json.dumps(document, indent=1) + "\n")
    if options.html is not None:
        write_output(options.html, render(reports, options.full))
    _print(reports)
    return 0


def _run_all(chosen: Sequence[Experiment], is_full: bool) -> list[tuple[Experiment, Report]]:
    """Everything that is needed once, with a bar on stderr, then the reports in order."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from dualpath.sim.paper.execute import execute_all

    runs = list(dict.fromkeys(run for one in chosen for run in one.runs(is_full)))
    columns = (TextColumn("simulating {task.fields[done]}/{task.fields[count]}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=sum(run.weight for run in runs), done=0, count=len(runs))
        num_done = 0

        def advance(weight: float) -> None:
            nonlocal num_done
            num_done += 1
            progress.update(task, advance=weight, done=num_done)

        outcomes = execute_all(runs, advance)
    return [(one, one.report(outcomes, is_full)) for one in chosen]


def _print(reports: Sequence[tuple[Experiment, Report]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for experiment, report in reports:
        table = Table(
            "number", "unit", "paper", "ours", "error", "fitted", title=experiment.title, title_justify="left"
        )
        for row in report.rows:
            error = "-" if row.rel_error is None else f"{row.rel_error:+.1%}"
            fitted = "yes" if row.fitted else ""
            table.add_row(row.what, row.unit, _short(row.paper), _short(row.ours), error, fitted)
        console.print(table)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"

"""``dualpath sim``: simulate a cluster with the live scheduler's policies."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dualpath.launch import cli_sim_paper, cli_sim_ratio, cli_sim_switch, cli_sim_validate


def add(verbs: Any) -> None:
    sim = verbs.add_parser("sim", help="simulate clusters of any size")
    actions = sim.add_subparsers(title="commands", dest="action", metavar="COMMAND", required=True)
    _add_run(actions)
    cli_sim_ratio.add(actions)
    cli_sim_paper.add(actions)
    cli_sim_validate.add(actions)
    cli_sim_switch.add(actions)


def _add_run(actions: Any) -> None:
    run = actions.add_parser(
        "run",
        help="one cluster, one workload, several systems",
        description="Simulate what a TOML file describes, once for every system it names.",
    )
    run.add_argument("--spec", type=Path, required=True, metavar="FILE.toml", help="cluster, model and workload")
    run.add_argument("--json", type=Path, metavar="OUT", help="write the results for programs")
    run.add_argument("--chrome-trace", type=Path, metavar="OUT", help="write a timeline for chrome://tracing")
    run.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dualpath.sim.compiled import require_current

    require_current()
    from dualpath.launch.sim_run import run

    return run(arguments.spec, arguments.json, arguments.chrome_trace)

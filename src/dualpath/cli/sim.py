"""``dualpath sim``: simulate a cluster with the live scheduler's policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dualpath.cli import sim_paper, sim_ratio, sim_switch, sim_validate
from dualpath.cli.command import add_command, add_group
from dualpath.config.fields import Options, setting


class _Options(Options):
    """Simulate what a TOML file describes, once for every system it names."""

    spec: Path = setting(metavar="FILE.toml", help="cluster, model and workload")
    update_every: int | None = setting(
        None,
        metavar="N",
        minimum=1,
        none_means="the spec's",
        help="change the weights after every N turns of all agents; each system runs without that, with it, and with"
        " the store wiped each time",
    )
    json: Path | None = setting(None, metavar="OUT", help="write the results for programs")
    chrome_trace: Path | None = setting(None, metavar="OUT", help="write a timeline for chrome://tracing")


def add(verbs: Any) -> None:
    actions = add_group(verbs, "sim", "simulate clusters of any size")
    add_command(actions, "run", "one cluster, one workload, several systems", _run, _Options)
    sim_ratio.add(actions)
    sim_paper.add(actions)
    sim_validate.add(actions)
    sim_switch.add(actions)


def _run(options: _Options) -> int:
    from dualpath.sim.compiled import require_current

    require_current()
    from dualpath.cli.sim_run import run

    return run(options.spec, options.json, options.chrome_trace, options.update_every)

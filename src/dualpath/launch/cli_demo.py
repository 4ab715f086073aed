"""``dualpath demo``: the whole system on this machine in a minute, with a model made on the spot."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dualpath.core.errors import ConfigError
from dualpath.launch.signals import sigterm_as_interrupt


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "demo",
        help="see it work on this machine, no download needed",
        description="Make a small random model, serve it with emulated storage NICs, and compare the read paths.",
    )
    parser.add_argument(
        "--work-dir", type=Path, default=Path(".demo"), metavar="DIR", help="for model and KV (default: .demo)"
    )
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    try:
        from dualpath.bench.demo import run, run_rollout
    except ModuleNotFoundError as error:
        raise ConfigError(f"the demo needs {error.name}: pip install 'dualpath[demo]'") from None
    with sigterm_as_interrupt():
        return run(arguments.work_dir) or run_rollout(arguments.work_dir)

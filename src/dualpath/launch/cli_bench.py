"""``dualpath bench``: the systems side by side, offline and online, with reports."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any, TypeVar

from dualpath.config import load_config
from dualpath.config.flags import add_flags, given_flags
from dualpath.core.errors import ConfigError
from dualpath.launch.bench_settings import (
    PER_SYSTEM,
    BenchSettings,
    RolloutSettings,
    ServingSettings,
    rates,
    system_names,
)
from dualpath.launch.signals import sigterm_as_interrupt

ROLLOUT = """\
Replay the same agents on one system after the other, all agents at once, each system on a fresh in-process cluster.
Turn i+1's prompt is everything said so far and the trace's next append; exactly as many tokens are generated as the
trace says, greedily, with no time between turns. Storage NICs are emulated with --storage-nic-mbps.
SNIC max/avg: storage reads of the most loaded node over the mean of all nodes, per second, in the first 80 % of a run.
Exit code 1 if two systems in fp32 generate different tokens (oracle's never count).
"""

SERVING = """\
Let agents arrive as a Poisson process and talk to a server over HTTP, a fresh one for every system and rate; measure
the requests that arrive in a window after the warm-up. A rate is met if mean TTFT and mean TPOT are within their limits
and TTFT does not keep growing: it does if each quarter of the window has a higher mean than the one before and the last
is 1.5 times the first. A measurement ends early when mean TTFT is beyond twice its limit. --find-capacity searches
the highest rate that is met, doubling from --min-aps and then bisecting.
"""

S = TypeVar("S", bound=BenchSettings)


def add(verbs: Any) -> None:
    bench = verbs.add_parser("bench", help="compare systems: basic, the paper's, ours, oracle")
    actions = bench.add_subparsers(title="commands", dest="action", metavar="COMMAND", required=True)
    _add(actions, "rollout", "all agents at once, to completion", ROLLOUT, RolloutSettings, _rollout)
    serving = _add(actions, "serving", "agents that arrive over time", SERVING, ServingSettings, _serving)
    serving.add_argument(  # instead of the generated one, which insists on a value
        "--find-capacity",
        dest="serving.find_capacity",
        nargs="?",
        const="true",
        metavar="BOOL",
        help="search the highest rate that keeps both limits, instead of trying --aps (default: false)",
    )


def _add(actions: Any, name: str, text: str, description: str, settings: type, run: Any) -> Any:
    parser = actions.add_parser(
        name,
        help=text,
        description=description,
        formatter_class=WideFormatter,
        usage=f"dualpath bench {name} [options]",
        conflict_handler="resolve",
    )
    add_flags(parser, settings, hidden=PER_SYSTEM)
    parser.set_defaults(run=run)
    return parser


class WideFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)


def _rollout(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments, RolloutSettings)
    from dualpath.launch.bench_rollout import run

    with sigterm_as_interrupt():
        return run(settings)


def _serving(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments, ServingSettings)
    serving = settings.serving
    if (serving.aps is None) != serving.find_capacity:
        raise ConfigError("give either --aps or --find-capacity")
    if serving.aps is not None:
        rates(serving.aps)
    if serving.min_aps > serving.max_aps:
        raise ConfigError(f"--min-aps {serving.min_aps:g} is more than --max-aps {serving.max_aps:g}")
    try:
        from dualpath.launch.bench_serving import run
    except ModuleNotFoundError as error:
        raise ConfigError(f"bench serving needs {error.name}: pip install 'dualpath[demo]'") from None
    with sigterm_as_interrupt():
        return run(settings)


def read_settings(arguments: argparse.Namespace, kind: type[S]) -> S:
    """Checked as far as possible without loading anything."""
    given = given_flags(arguments, kind)
    for name in PER_SYSTEM:
        if ("cluster", name) in given:
            raise ConfigError(f"--{name.replace('_', '-')}: a benchmark compares whole systems; see --systems")
    settings = load_config(kind, None, given)
    system_names(settings.workload.systems)
    if not settings.model.dir.is_dir():
        raise ConfigError(f"no such model directory: {settings.model.dir}")
    quiet_process()
    for flag, path in (("--json", settings.output.json), ("--html", settings.output.html)):
        if path is not None:
            check_writable(flag, path)
    return settings


def quiet_process() -> None:
    """Before transformers is imported: models are local, and our own bars are enough."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def check_writable(flag: str, path: Path) -> None:
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise ConfigError(f"{flag}: cannot write to {path}")

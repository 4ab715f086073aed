"""``dualpath bench``: the systems side by side, offline and online, with reports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from dualpath.bench.settings import (
    NOT_IN_ROLLOUTS,
    NOT_IN_SERVING,
    PER_SYSTEM,
    BenchSettings,
    RolloutSettings,
    ServingSettings,
    check_engine,
    rates,
    system_names,
)
from dualpath.cli.command import Given, add_command, add_group
from dualpath.cluster.setup import quiet_process
from dualpath.cluster.signals import interrupted_by_signals
from dualpath.config import load_config
from dualpath.core.errors import ConfigError

ROLLOUT = """\
Replay the same agents on one system after the other, all agents at once, each system on a fresh cluster: engines in
this process, or vLLM servers (--engine vllm).
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

FIND_CAPACITY = {
    "alone": "true",
    "help": "search the highest rate that keeps both limits, instead of trying --aps",
}
S = TypeVar("S", bound=BenchSettings)


def add(verbs: Any) -> None:
    actions = add_group(verbs, "bench", "compare systems: basic, the paper's, ours, oracle")
    text = "all agents at once, to completion"
    add_command(actions, "rollout", text, _rollout, root=RolloutSettings, hidden=NOT_IN_ROLLOUTS, description=ROLLOUT)
    add_command(
        actions,
        "serving",
        "agents that arrive over time",
        _serving,
        root=ServingSettings,
        hidden=NOT_IN_SERVING,
        changed={"find_capacity": FIND_CAPACITY},
        description=SERVING,
    )


def _rollout(given: Given) -> int:
    settings = read_settings(given, RolloutSettings)
    from dualpath.bench.run_rollout import run

    with interrupted_by_signals():
        return run(settings)


def _serving(given: Given) -> int:
    settings = read_settings(given, ServingSettings)
    serving = settings.serving
    if (serving.aps is None) != serving.find_capacity:
        raise ConfigError("give either --aps or --find-capacity")
    if serving.aps is not None:
        rates(serving.aps)
    if serving.min_aps > serving.max_aps:
        raise ConfigError(f"--min-aps {serving.min_aps:g} is more than --max-aps {serving.max_aps:g}")
    try:
        from dualpath.bench.run_serving import run
    except ModuleNotFoundError as error:
        raise ConfigError(f"bench serving needs {error.name}: pip install 'dualpath[demo]'") from None
    with interrupted_by_signals():
        return run(settings)


def read_settings(given: Given, kind: type[S]) -> S:
    """Checked as far as possible without loading anything."""
    for name in PER_SYSTEM:
        if ("cluster", name) in given:
            raise ConfigError(f"--{name.replace('_', '-')}: a benchmark compares whole systems; see --systems")
    settings = load_config(kind, None, given)
    system_names(settings.workload.systems)
    check_engine(settings)
    if not settings.model.dir.is_dir():
        raise ConfigError(f"no such model directory: {settings.model.dir}")
    quiet_process()
    for flag, path in (("--json", settings.output.json), ("--html", settings.output.html)):
        if path is not None:
            check_writable(flag, path)
    return settings


def check_writable(flag: str, path: Path) -> None:
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise ConfigError(f"{flag}: cannot write to {path}")

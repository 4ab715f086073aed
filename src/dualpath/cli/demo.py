"""``dualpath demo``: the whole system on this machine in three minutes, with a small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dualpath.cli.command import add_command
from dualpath.cluster.signals import interrupted_by_signals
from dualpath.config.fields import Options, setting
from dualpath.core.errors import ConfigError


class _Options(Options):
    """Serve a small model with emulated storage NICs, ask it about documents, and compare the read paths. The model is
    SmolLM2-135M-Instruct from a wheel of 93 MB, or a random one where that cannot be had.
    """

    work_dir: Path = setting(Path(".demo"), metavar="DIR", help="for model and KV")
    random: bool = setting(False, help="take a random model, and download nothing")


def add(verbs: Any) -> None:
    add_command(verbs, "demo", "see it work on this machine", _demo, _Options)


def _demo(options: _Options) -> int:
    try:
        from dualpath.bench.demo import run, run_rollout
    except ModuleNotFoundError as error:
        raise ConfigError(f"the demo needs {error.name}: pip install 'dualpath[demo]'") from None
    with interrupted_by_signals():
        return run(options.work_dir, download=not options.random) or run_rollout(options.work_dir)

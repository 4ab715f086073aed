"""``dualpath up``, ``status`` and ``down``: a system whose nodes are processes of their own, on one machine or many."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from dualpath.cli.command import Given, add_command
from dualpath.cli.operate.check import print_config
from dualpath.config import ServeConfig, load_config
from dualpath.config.fields import Options, setting
from dualpath.core.errors import ConfigError, DualPathError

_NAME = "dualpath"


class _UpOptions(Options):
    """Start the nodes that the [[nodes]] tables of a file describe, each in a process of its own, and before them a
    gateway, or as many as --gateways says. Returns when requests are served, and prints the URLs; the system runs on
    until "dualpath down". --block stays instead, until Ctrl-C, and ends it then.

    Without --address a Ray is started on this machine for the system alone, and ended with it. With --address the nodes
    run on that Ray cluster, each on a host that offers its resource: dualpath-prefill or dualpath-decode, or what the
    node's table says.
    """

    config: Path = setting(metavar="FILE", help="TOML file with [[nodes]]")
    block: bool = setting(False, help="stay in the foreground; Ctrl-C ends the system")
    dry_run: bool = setting(False, help="print the resolved configuration and do nothing else")


class _Options(Options):
    """Which system."""

    # [ray] name says which names there can be.
    cluster_name: str = setting(_NAME, may_be_empty=True, metavar="NAME", help="the system's name")


class _StatusOptions(_Options):
    """Show a running system's nodes, engines, queues and NIC rates."""

    url: str | None = setting(
        None, metavar="URL", none_means="the named system's", help="of a gateway, also of dualpath serve"
    )
    api_key: str | None = setting(
        None, metavar="KEY", none_means="$DUALPATH_API_KEY", help="if the gateway asks for one"
    )
    interval_s: float = setting(1.0, above=0, maximum=3600, help="rates over so long")
    json: bool = setting(False, help="as one JSON object")


class _DownOptions(_Options):
    """End a system that dualpath up has started; its store stays."""

    drain_s: float = setting(30.0, minimum=0, maximum=3600, help="seconds that running requests get")


def add(verbs: Any) -> None:
    text = "start a system of many nodes, on this machine or on a Ray cluster"
    usage = "dualpath up --config FILE [--address HOST:PORT] [--block] [options]"
    add_command(verbs, "up", text, _up, _UpOptions, root=ServeConfig, usage=usage)
    text = "show a running system's nodes, engines, queues and NIC rates"
    add_command(verbs, "status", text, _status, _StatusOptions)
    add_command(verbs, "down", "end a system that dualpath up has started; its store stays", _down, _DownOptions)


def _up(options: _UpOptions, given: Given) -> int:
    config = load_config(ServeConfig, options.config, given)
    if not config.nodes:
        raise ConfigError(f"{options.config}: has no [[nodes]]; dualpath serve runs everything in one process")
    if options.dry_run:
        return print_config(config, options.config, given)
    from dualpath.ray.system import System, run_in_foreground

    if options.block:
        return run_in_foreground(config, _say)
    started_s = time.monotonic()
    urls = System(config.ray.name, _say).up(config)
    _say(f"ready after {time.monotonic() - started_s:.1f} s: {' '.join(urls)}")
    _say(f"dualpath status{_name_flag(config.ray.name)} shows it, dualpath down{_name_flag(config.ray.name)} ends it")
    return 0


def _status(options: _StatusOptions) -> int:
    from rich.console import Console

    from dualpath.report.status import read_status, show

    key = options.api_key or os.environ.get("DUALPATH_API_KEY")
    urls, logs = ((options.url.rstrip("/"),), None) if options.url else _known_of(options.cluster_name)
    status = read_status(urls, key, options.interval_s) | ({"vllm_logs": logs} if logs else {})
    if options.json:
        _say(json.dumps(status))
    else:
        show(status, Console(width=max(120, Console().width)))
        if logs:
            _say(f"vLLM servers log to {logs}/NODE.log, each on its node's host")
    return 0


def _known_of(name: str) -> tuple[tuple[str, ...], str | None]:
    """Gateways' URLs, and where vLLM servers log."""
    from dualpath.ray.run_dir import RunDir

    run_dir = RunDir.of(name)
    if not run_dir.is_there:
        raise DualPathError(f"{run_dir.why_not_there()}; name a gateway with --url")
    state = run_dir.read()
    if state is None or not state.urls:
        hint = f"dualpath down{_name_flag(name)} ends it"
        raise DualPathError(f"{name} is not ready yet, or its start was broken off: {hint}")
    return state.urls, state.vllm_logs


def _down(options: _DownOptions) -> int:
    from dualpath.ray.system import System

    System(options.cluster_name, _say).down(options.drain_s)
    _say(f"{options.cluster_name} is down")
    return 0


def _name_flag(name: str) -> str:
    return "" if name == _NAME else f" --cluster-name {name}"


def _say(line: str) -> None:
    print(line, flush=True)

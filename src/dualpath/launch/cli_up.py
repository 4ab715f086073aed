"""``dualpath up``, ``status`` and ``down``: a system whose nodes are processes of their own, on one machine or many."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from dualpath.config import ServeConfig, load_config
from dualpath.config.flags import add_flags, given_flags
from dualpath.core.errors import ConfigError, DualPathError

UP = """\
Start the nodes that the [[nodes]] tables of a file describe, each in a process of its own, and a gateway before them.
Returns when requests are served, and prints the URL; the system runs on until "dualpath down". --block stays instead,
until Ctrl-C, and ends it then.

Without --address a Ray is started on this machine for the system alone, and ended with it. With --address the nodes
run on that Ray cluster, each on a host that offers its resource: dualpath-prefill or dualpath-decode, or what the
node's table says.
"""
_NAME = "dualpath"


def add(verbs: Any) -> None:
    up = verbs.add_parser(
        "up",
        help="start a system of many nodes, on this machine or on a Ray cluster",
        description=UP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="dualpath up --config FILE [--address HOST:PORT] [--block] [options]",
    )
    up.add_argument("--config", type=Path, required=True, metavar="FILE", help="TOML file with [[nodes]]")
    up.add_argument("--block", action="store_true", help="stay in the foreground; Ctrl-C ends the system")
    add_flags(up, ServeConfig)
    up.set_defaults(run=_up)
    _add_status(verbs)
    _add_down(verbs)


def _add_status(verbs: Any) -> None:
    status = verbs.add_parser("status", help="show a running system's nodes, engines, queues and NIC rates")
    status.add_argument("--cluster-name", default=_NAME, metavar="NAME", help="the system's name (default: dualpath)")
    status.add_argument("--url", help="of a gateway, also of dualpath serve (default: the named system's)")
    status.add_argument("--api-key", metavar="KEY", help="if the gateway asks for one (default: $DUALPATH_API_KEY)")
    status.add_argument("--interval-s", type=float, default=1.0, metavar="X", help="rates over so long (default: 1)")
    status.add_argument("--json", action="store_true", help="as one JSON object")
    status.set_defaults(run=_status)


def _add_down(verbs: Any) -> None:
    down = verbs.add_parser("down", help="end a system that dualpath up has started; its store stays")
    down.add_argument("--cluster-name", default=_NAME, metavar="NAME", help="the system's name (default: dualpath)")
    down.add_argument(
        "--drain-s", type=float, default=30.0, metavar="X", help="seconds that running requests get (default: 30)"
    )
    down.set_defaults(run=_down)


def _up(arguments: argparse.Namespace) -> int:
    config = load_config(ServeConfig, arguments.config, given_flags(arguments, ServeConfig))
    if not config.nodes:
        raise ConfigError(f"{arguments.config}: has no [[nodes]]; dualpath serve runs everything in one process")
    from dualpath.launch.ray.system import System, run_in_foreground

    if arguments.block:
        return run_in_foreground(config, _say)
    started_s = time.monotonic()
    url = System(config.ray.name, _say).up(config)
    _say(f"ready after {time.monotonic() - started_s:.1f} s: {url}")
    _say(f"dualpath status{_name_flag(config.ray.name)} shows it, dualpath down{_name_flag(config.ray.name)} ends it")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from dualpath.launch.status import read_status, show

    if not 0 < arguments.interval_s <= 3600:
        raise ConfigError(f"--interval-s: must be more than 0 and at most 3600, not {arguments.interval_s:g}")
    key = arguments.api_key or os.environ.get("DUALPATH_API_KEY")
    status = read_status((arguments.url or _url_of(arguments.cluster_name)).rstrip("/"), key, arguments.interval_s)
    if arguments.json:
        _say(json.dumps(status))
    else:
        show(status, Console(width=max(120, Console().width)))
    return 0


def _url_of(name: str) -> str:
    from dualpath.launch.ray.run_dir import RunDir

    state = RunDir.of(name).read()
    if state is None:
        raise DualPathError(f"no system of the name {name} was started on this machine; name a gateway with --url")
    if state.url is None:
        raise DualPathError(f"{name} is not ready yet")
    return state.url


def _down(arguments: argparse.Namespace) -> int:
    if not 0 <= arguments.drain_s <= 3600:
        raise ConfigError(f"--drain-s: must be between 0 and 3600, not {arguments.drain_s:g}")
    from dualpath.launch.ray.system import System

    System(arguments.cluster_name, _say).down(arguments.drain_s)
    _say(f"{arguments.cluster_name} is down")
    return 0


def _name_flag(name: str) -> str:
    return "" if name == _NAME else f" --cluster-name {name}"


def _say(line: str) -> None:
    print(line, flush=True)

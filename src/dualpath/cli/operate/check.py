"""``dualpath check``: what would fail or be slow, found out before anything is loaded."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dualpath.cli.command import Given, add_command
from dualpath.config import ServeConfig, load_config
from dualpath.config.fields import Options, setting
from dualpath.core.errors import ConfigError


class _CheckOptions(Options):
    """Look at what a configuration needs before it is started: model, geometry, store and its rate, NICs, UCX, memory,
    memlock, clocks, ports. A line for each; where something is not well it says what to do. Exit code 1 where something
    would fail; what may only be slow is a warning.

    Without --address everything is looked for on this host. With it every node is checked on a host that offers its
    resource, and what must be equal on all of them is compared; the nodes' resources must be free. On hosts without
    Ray, run it on each with --node.
    """

    config: Path | None = setting(None, metavar="FILE", help="TOML file of settings; flags win over it")
    node: str | None = setting(None, metavar="NAME", none_means="all", help="check this host as that node only")
    json: bool = setting(False, help="as one JSON object")
    dry_run: bool = setting(False, help="print the resolved configuration and do nothing else")


def add(verbs: Any) -> None:
    text = "find out what would fail or be slow, before a start"
    usage = "dualpath check --config FILE [--node NAME] [options]"
    add_command(verbs, "check", text, _check, _CheckOptions, root=ServeConfig, usage=usage)


def _check(options: _CheckOptions, given: Given) -> int:
    config = load_config(ServeConfig, options.config, given)
    if options.dry_run:
        return print_config(config, options.config, given)
    from dualpath.cluster.setup import quiet_process
    from dualpath.preflight.line import exit_code
    from dualpath.preflight.run import check_host, conclude

    quiet_process()
    nodes = [node for node in config.nodes if options.node in (None, node.name)]
    if options.node is not None and not nodes:
        raise ConfigError(f"--node: {options.config or 'no file'} has no node {options.node}")
    asked_unix_s = time.time()
    if config.nodes and config.ray.address is not None and options.node is None:
        from dualpath.ray.preflight import check_cluster

        reports = check_cluster(config)
    else:
        reports = [check_host(config, nodes)]
    lines = conclude(reports, asked_unix_s)
    code = exit_code(lines)
    if options.json:
        print(json.dumps({"ok": code == 0, "lines": [asdict(line) for line in lines]}))
    else:
        print("\n".join(map(str, lines)))
    return code


def print_config(config: ServeConfig, file: Path | None, given: Given) -> int:
    from dualpath.config.show import to_toml

    print(to_toml(config, file, given), end="")
    return 0

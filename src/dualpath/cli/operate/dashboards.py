"""``dualpath dashboards``: files for Grafana and Prometheus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dualpath.cli.command import add_command
from dualpath.config.fields import Address, Options, setting


class _Options(Options):
    """Write a Grafana dashboard, Prometheus alert rules and a Prometheus configuration that scrapes a gateway."""

    out: Path = setting(metavar="DIR", help="where to; files of the same names are replaced")
    target: Address = setting(Address("127.0.0.1", 8000), help="the gateway that Prometheus scrapes")


def add(verbs: Any) -> None:
    add_command(verbs, "dashboards", "write files for Grafana and Prometheus", _write, _Options)


def _write(options: _Options) -> int:
    from dualpath.report.dashboards.write import write_dashboards

    for path in write_dashboards(options.out, f"{options.target.host}:{options.target.port}"):
        print(path)
    return 0

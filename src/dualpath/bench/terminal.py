"""A comparison as a table on the terminal, with the one sentence that it comes down to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from dualpath.bench.compare import INVALID_SYSTEMS
from dualpath.report.headline import rollout_headline, serving_headline
from dualpath.report.nic_table import COLUMNS, NOTE, UNITS, has_nics, nic_rows

ROLLOUT_COLUMNS = (
    "JCT\ns",
    "ratio",
    "hit\nrate",
    "TTFT\np50 s",
    "TTFT\np99 s",
    "TPOT\nms",
    "SNIC\nmax/avg",
    "read\nMiB",
)


def print_rollout(console: Console, report: Mapping[str, Any]) -> None:
    systems = report["systems"]
    first = next(iter(systems.values()))
    table = _table("system", *ROLLOUT_COLUMNS)
    for name, one in systems.items():
        table.add_row(
            f"{name}*" if name in INVALID_SYSTEMS else name,
            f"{one['jct_s']:.2f}",
            f"{one['jct_s'] / first['jct_s']:.2f}x",
            f"{one['hit_rate']:.1%}",
            _number(one["ttft_s"].get("p50"), 1, ".3f"),
            _number(one["ttft_s"].get("p99"), 1, ".3f"),
            _number(one["tpot_s"].get("mean"), 1000, ".1f"),
            _number(one["snic_max_avg"], 1, ".2f"),
            f"{sum(one['storage_read_bytes'].values()) / 2**20:.0f}",
        )
    console.print(table)
    if INVALID_SYSTEMS & set(systems):
        console.print("* moves no KV: its answers are meaningless, only its time is of interest")
    console.print(rollout_headline(report))
    if (ceiling := report["limits"].get("infinite_cache_hit_rate")) is not None:
        console.print(f"A cache that never forgets would hit {ceiling:.1%} of the prompts' tokens.")
    if has_nics(report):
        _print_nics(console, report)


def _print_nics(console: Console, report: Mapping[str, Any]) -> None:
    table = _table("system", *(f"{name}\n{unit}" for name, unit in zip(COLUMNS, UNITS, strict=True)))
    for name, cells in nic_rows(report):
        table.add_row(name, *cells)
    console.print(table)
    console.print(NOTE)


def print_serving(console: Console, report: Mapping[str, Any]) -> None:
    table = _table(
        "system", "APS", "re-\nquests", "TTFT\nmean s", "TTFT\np99 s", "TPOT\nms", "read\ns", "steady", "SLO"
    )
    for name, one in report["systems"].items():
        for point in one["points"]:
            table.add_row(
                name,
                f"{point['aps']:.3g}",
                str(point["requests"]),
                _number(point["ttft_s"].get("mean"), 1, ".3f"),
                _number(point["ttft_s"].get("p99"), 1, ".3f"),
                _number(point["tpot_s"].get("mean"), 1000, ".1f"),
                _number(point["phases_s"].get("reading", {}).get("mean"), 1, ".3f"),
                "yes" if point["steady"] else "no",
                "met" if point["meets_slo"] else "missed",
            )
    console.print(table)
    console.print(serving_headline(report))


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _number(value: float | None, factor: float, shape: str) -> str:
    return "-" if value is None else format(value * factor, shape)

"""A validation on the terminal: a table for each shape and system, and one line that says how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from dualpath.bench.cpu_use import CpuUse
from dualpath.sim.validation import BYTES_TOLERANCE, JCT_TOLERANCE, Row

MIB = 1024 * 1024


def print_comparison(console: Console, title: str, rows: Sequence[Row], cpu: CpuUse) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("real", "spread", "simulated", "spread", "error", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        verdict = "" if row.tolerance is None else "ok" if row.holds else "off"
        spread = f"{row.spread:.1%}" if len(row.real) > 1 else "-"
        real = (_number(row, row.real_mean), spread)
        simulated = (_number(row, row.simulated_mean), f"{row.simulated_spread:.1%}")
        table.add_row(row.what, *real, *simulated, f"{row.rel_error:+.1%}", verdict)
    console.print(table)
    console.print(str(cpu), highlight=False)


def _number(row: Row, value: float) -> str:
    return f"{value / MIB:.1f} MiB" if row.unit == "bytes" else f"{value:.3f} s"


def print_verdict(console: Console, found: Mapping[str, Any]) -> None:
    wrong = [
        f"{shape} {system} {row['what']}"
        for shape, one in found.items()
        for system, entry in one["systems"].items()
        for row in entry["rows"]
        if not row["holds"]
    ]
    limits = f"JCT within {JCT_TOLERANCE:.0%} and the bytes of every storage NIC within {BYTES_TOLERANCE:.0%}"
    if not wrong:
        console.print(f"Real and simulated agree: {limits}.", highlight=False)
        return
    console.print(f"[bold red]Real and simulated do not agree ({limits}):[/]", highlight=False)
    for line in wrong:
        console.print(f"  {line}", highlight=False)

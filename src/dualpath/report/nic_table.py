"""What a run on real links adds to a report: every NIC's bytes by the kernel beside the program's own count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MIB = 2**20
COLUMNS = ("host", "NIC", "limit", *("rx", "ours", "over", "peak"), *("tx", "ours", "over", "peak"))
UNITS = ("", "", "Mb/s", *("MiB", "MiB", "%", "Mb/s") * 2)
NOTE = (
    "rx, tx: by the kernel, headers, acknowledgements and what was sent again included; ours: the payload that the "
    "engines counted; over: the kernel's payload (66 bytes a packet less) over ours; peak: the highest mean rate over "
    "3 s. c0 includes kv0."
)


def has_nics(report: Mapping[str, Any]) -> bool:
    return any("nics" in one for one in report["systems"].values())


def nic_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """(system, one cell for every column)."""
    for name, one in report["systems"].items():
        for nic in one.get("nics", ()):
            yield name, [nic["host"], nic["nic"], _rate(nic["rate_mbps"]), *_one_way(nic, "rx"), *_one_way(nic, "tx")]


def _one_way(nic: Mapping[str, Any], way: str) -> tuple[str, ...]:
    program, excess = nic[f"program_{way}_bytes"], nic[f"{way}_excess"]
    return (
        _mib(nic[f"{way}_bytes"]),
        "-" if program is None else _mib(program),
        "-" if excess is None else f"{excess:+.1%}".rstrip("%"),
        f"{nic[f'peak_{way}_mbps']:.0f}",
    )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / MIB:.0f}" if num_bytes > 100 * MIB else f"{num_bytes / MIB:.1f}"


def _rate(mbps: float | None) -> str:
    return "-" if mbps is None else f"{mbps:g}"

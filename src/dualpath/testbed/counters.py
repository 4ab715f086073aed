"""What the kernel counted on every NIC of a testbed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from dualpath.testbed.spec import TestbedSpec
from dualpath.testbed.system import run


@dataclass(frozen=True, slots=True)
class NicCounters:
    """Bytes since the testbed came up, headers included. What passes ``kv0`` passes ``c0`` too and counts in both."""

    host: str
    nic: str
    rx_bytes: int
    tx_bytes: int
    rx_packets: int  # as the kernel passes them on: up to 64 KiB with one header
    tx_packets: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_nics(spec: TestbedSpec) -> list[NicCounters]:
    """All NICs of all hosts, in the order of ``--nodes``."""
    out = []
    for host in spec.nodes:
        links = json.loads(run(("ip", "-n", spec.namespace(host), "-s", "-j", "link", "show")))
        stats = {link["ifname"]: link["stats64"] for link in links}
        out += [_counters(host, nic, stats[nic]) for nic in spec.nics(host)]
    return out


def _counters(host: str, nic: str, stats: Any) -> NicCounters:
    rx, tx = stats["rx"], stats["tx"]
    return NicCounters(host, nic, rx["bytes"], tx["bytes"], rx["packets"], tx["packets"])

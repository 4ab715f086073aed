"""What the kernel counted on every NIC of a testbed, and in every traffic class."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from dualpath.launch.testbed.spec import COMPUTE_NIC, TestbedSpec
from dualpath.launch.testbed.system import run
from dualpath.traffic.fabric.htb import KV_CLASS, MODEL_CLASS

# Older tc prints classes as text only.
_CLASS = re.compile(r"class htb (\S+) .*\n Sent (\d+) bytes \d+ pkts? \(dropped (\d+)")


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


@dataclass(frozen=True, slots=True)
class ClassCounters:
    """Bytes that a host's compute NIC has sent in each class, and packets that a full queue dropped."""

    host: str
    model_bytes: int
    kv_bytes: int
    model_drops: int
    kv_drops: int


def read_classes(spec: TestbedSpec, host: str) -> ClassCounters:
    """With ``classes`` off everything counts as model."""
    text = run(("tc", "-n", spec.namespace(host), "-s", "class", "show", "dev", COMPUTE_NIC))
    counts = {name: (int(num_bytes), int(drops)) for name, num_bytes, drops in _CLASS.findall(text)}
    (model_bytes, model_drops), (kv_bytes, kv_drops) = counts[MODEL_CLASS], counts.get(KV_CLASS, (0, 0))
    return ClassCounters(host, model_bytes, kv_bytes, model_drops, kv_drops)

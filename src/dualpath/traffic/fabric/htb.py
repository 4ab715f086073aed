"""Linux tc: one class for a storage NIC, two for a compute NIC. What the testbed uses and what an operator is given.

Commands are tuples of words. Parameters (tc-htb(8)): the parent has the NIC's rate; MODEL is guaranteed 99 % of it and
goes first (paper, section 5), KV is guaranteed 1 % and may take all that is idle. Queues are plain FIFOs, in bytes.
"""

from __future__ import annotations

from ipaddress import IPv4Network

from dualpath.traffic.fabric.lanes import MODEL_SHARE

Command = tuple[str, ...]

KV_CLASS = "1:20"
MODEL_CLASS = "1:10"
ROOT_CLASS = "1:1"

_MIN_BURST_BYTES = 32 * 1024
_BURST_S = 100e-6  # the kernel's timers wake htb this late at worst; what a class may send at once must last as long
_QUANTUM_BYTES = 16_000
_ONE_PACKET_BYTES = 1600  # KV's turn under contention: one full Ethernet frame
_MODEL_QUEUE, _KV_QUEUE, _STORAGE_QUEUE = "4mb", "512kb", "1mb"


def one_class(device: str, rate_mbps: float, queue: str = _STORAGE_QUEUE) -> list[Command]:
    """Everything that leaves ``device`` shares one queue of ``rate_mbps`` Mbit/s: a storage NIC, or no classes."""
    rate, burst = _rate(rate_mbps), _burst_bytes(rate_mbps)
    limits = f"rate {rate} ceil {rate} burst {burst} cburst {burst} quantum {_QUANTUM_BYTES}"
    return [
        _root(device),
        _words(f"tc class add dev {device} parent 1: classid {MODEL_CLASS} htb {limits}"),
        _fifo(device, MODEL_CLASS, queue),
    ]


def two_classes(device: str, rate_mbps: float, kv_subnet: IPv4Network) -> list[Command]:
    """What leaves ``device`` for ``kv_subnet`` is KV, all else MODEL; together at most ``rate_mbps`` Mbit/s."""
    rate, burst = _rate(rate_mbps), _burst_bytes(rate_mbps)
    model, kv = _rate(rate_mbps * MODEL_SHARE), _rate(rate_mbps * (1 - MODEL_SHARE))
    ceiling = f"ceil {rate} cburst {burst}"
    long_turn = f"burst {burst} quantum {_QUANTUM_BYTES}"
    one_packet = f"burst {_ONE_PACKET_BYTES} quantum {_ONE_PACKET_BYTES}"
    add = f"tc class add dev {device} parent"
    return [
        _root(device),
        _words(f"{add} 1: classid {ROOT_CLASS} htb rate {rate} {ceiling} {long_turn}"),
        _words(f"{add} {ROOT_CLASS} classid {MODEL_CLASS} htb rate {model} {ceiling} {long_turn} prio 0"),
        _words(f"{add} {ROOT_CLASS} classid {KV_CLASS} htb rate {kv} {ceiling} {one_packet} prio 7"),
        _fifo(device, MODEL_CLASS, _MODEL_QUEUE),
        _fifo(device, KV_CLASS, _KV_QUEUE),
        _words(
            f"tc filter add dev {device} parent 1: protocol ip prio 1 u32 match ip dst {kv_subnet} flowid {KV_CLASS}"
        ),
    ]


def compute_nic(device: str, rate_mbps: float, kv_subnet: IPv4Network, *, classes: bool) -> list[Command]:
    """A compute NIC with its two classes, or with one queue for both."""
    return two_classes(device, rate_mbps, kv_subnet) if classes else one_class(device, rate_mbps, _MODEL_QUEUE)


def _root(device: str) -> Command:
    """What no filter takes goes to MODEL_CLASS, ARP included."""
    return _words(f"tc qdisc add dev {device} root handle 1: htb default 10")


def _fifo(device: str, parent: str, limit: str) -> Command:
    return _words(f"tc qdisc add dev {device} parent {parent} bfifo limit {limit}")


def _words(text: str) -> Command:
    return tuple(text.split())


def _rate(mbps: float) -> str:
    return f"{max(1, round(mbps * 1000))}kbit"


def _burst_bytes(rate_mbps: float) -> int:
    return max(_MIN_BURST_BYTES, round(rate_mbps * 1e6 / 8 * _BURST_S))

"""From a description to the commands that make it, in order. Pure: runs nothing.

The switch holds a bridge for storage and one for compute. Every host has a veth pair to each: ``s0`` and ``c0`` on its
side, ``s-HOST`` and ``c-HOST`` on the switch's. ``kv0``, a macvlan device over ``c0`` with a subnet of its own, carries
KV, so the destination address tells the classes apart. Each link is shaped at both ends: the host's end limits what it
sends, the switch's end what it receives.
"""

from __future__ import annotations

from ipaddress import IPv4Network

from dualpath.testbed.spec import (
    COMPUTE_BRIDGE,
    COMPUTE_NETWORK,
    COMPUTE_NIC,
    KV_NETWORK,
    KV_NIC,
    STORAGE_BRIDGE,
    STORAGE_NETWORK,
    STORAGE_NIC,
    SWITCH,
    TestbedSpec,
)
from dualpath.traffic.fabric.ethernet import ARP_SETTINGS
from dualpath.traffic.fabric.htb import Command, compute_nic, one_class

# Model-based congestion control (bbr, the default of many kernels) keeps probing a queue that is not its own, and
# collectives then wait even without KV beside them.
CONGESTION_CONTROL = "reno"


def commands(spec: TestbedSpec) -> list[Command]:
    """All commands of a testbed. The namespaces come first, so that whatever fails later is inside one of them."""
    out: list[Command] = [("ip", "netns", "add", namespace) for namespace in spec.namespaces]
    for namespace in spec.namespaces:
        out += _host_basics(namespace)
    out += _switch(spec)
    for node in spec.nodes:
        out += _storage_link(spec, node)
        if spec.has_compute(node):
            out += _compute_link(spec, node)
    return out


def removal(namespaces: tuple[str, ...]) -> list[Command]:
    """Deleting a namespace deletes every device in it, and a veth pair with either of its ends."""
    return [("ip", "netns", "del", namespace) for namespace in namespaces]


def _host_basics(namespace: str) -> list[Command]:
    return [
        ("ip", "-n", namespace, "link", "set", "lo", "up"),
        _setting(namespace, "net/ipv4/tcp_congestion_control", CONGESTION_CONTROL),
        _setting(namespace, "net/ipv6/conf/all/disable_ipv6", "1"),  # no chatter in the counters
        _setting(namespace, "net/ipv6/conf/default/disable_ipv6", "1"),
    ]


def _switch(spec: TestbedSpec) -> list[Command]:
    namespace = spec.namespace(SWITCH)
    out: list[Command] = []
    for bridge, network in ((STORAGE_BRIDGE, STORAGE_NETWORK), (COMPUTE_BRIDGE, COMPUTE_NETWORK)):
        out += [
            ("ip", "-n", namespace, "link", "add", "name", bridge, "type", "bridge"),
            _address(spec, SWITCH, bridge, network),
            ("ip", "-n", namespace, "link", "set", bridge, "up"),
        ]
    return out


def _storage_link(spec: TestbedSpec, node: str) -> list[Command]:
    port = f"s-{node}"
    out = _link(spec, node, STORAGE_NIC, port, STORAGE_BRIDGE, STORAGE_NETWORK)
    if spec.has_compute(node):  # a storage host must be able to feed all NICs at once
        out += _at_both_ends(
            spec, node, one_class(STORAGE_NIC, spec.storage_nic_mbps), one_class(port, spec.storage_nic_mbps)
        )
    return out


def _compute_link(spec: TestbedSpec, node: str) -> list[Command]:
    port, rate_mbps, namespace = f"c-{node}", spec.compute_nic_mbps, spec.namespace(node)
    macvlan = ("link", COMPUTE_NIC, "name", KV_NIC, "type", "macvlan", "mode", "bridge")
    return [
        *_link(spec, node, COMPUTE_NIC, port, COMPUTE_BRIDGE, COMPUTE_NETWORK),
        ("ip", "-n", namespace, "link", "add", *macvlan),
        _address(spec, node, KV_NIC, KV_NETWORK),
        *(
            _setting(namespace, f"net/ipv4/conf/{device}/{name}", str(value))
            for device in (COMPUTE_NIC, KV_NIC)
            for name, value in ARP_SETTINGS
        ),
        ("ip", "-n", namespace, "link", "set", KV_NIC, "up"),
        *_at_both_ends(
            spec,
            node,
            compute_nic(COMPUTE_NIC, rate_mbps, KV_NETWORK, classes=spec.classes),
            compute_nic(port, rate_mbps, KV_NETWORK, classes=spec.classes),
        ),
    ]


def _link(spec: TestbedSpec, node: str, nic: str, port: str, bridge: str, network: IPv4Network) -> list[Command]:
    host, switch = spec.namespace(node), spec.namespace(SWITCH)
    return [
        ("ip", "-n", host, "link", "add", "name", nic, "type", "veth", "peer", "name", port, "netns", switch),
        _address(spec, node, nic, network),
        ("ip", "-n", host, "link", "set", nic, "up"),
        ("ip", "-n", switch, "link", "set", port, "master", bridge, "up"),
    ]


def _at_both_ends(spec: TestbedSpec, node: str, at_host: list[Command], at_switch: list[Command]) -> list[Command]:
    ends = ((node, at_host), (SWITCH, at_switch))
    return [("tc", "-n", spec.namespace(host), *command[1:]) for host, shaping in ends for command in shaping]


def _address(spec: TestbedSpec, host: str, device: str, network: IPv4Network) -> Command:
    address = f"{spec.address(network, host)}/{network.prefixlen}"
    return ("ip", "-n", spec.namespace(host), "addr", "add", address, "dev", device)


def _setting(namespace: str, path: str, value: str) -> Command:
    """A network setting of one namespace. Missing ones (a kernel without IPv6) are no fault."""
    script = f"[ ! -e /proc/sys/{path} ] || echo {value} > /proc/sys/{path}"
    return ("ip", "netns", "exec", namespace, "sh", "-c", script)

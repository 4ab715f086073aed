"""Plain Ethernet: classes by destination address, made by Linux tc, told to switches by DSCP.

KV gets addresses of its own on a macvlan device over the compute NIC, so neither UCX nor any other program must mark
its packets. The tc commands are those of the namespaces testbed (``htb``), where their effect is measured.
"""

from __future__ import annotations

import shlex
from ipaddress import IPv4Network

from dualpath.traffic.fabric import htb
from dualpath.traffic.fabric.document import comment, document
from dualpath.traffic.fabric.lanes import dscp, ets_weights, priority
from dualpath.traffic.fabric.spec import ComputeNic, FabricNode, FabricSpec, TrafficClass

# tc counts frames without preamble, gap and checksum (24 of 1538 bytes on the wire); a little less than the line's rate
# keeps the queue in tc, where the classes are, and out of the NIC.
SHAPED_SHARE = 0.95
# Linux ip-sysctl: answer, and speak, for the device's own address only.
ARP_SETTINGS = (("arp_ignore", 1), ("arp_announce", 2))


def kv_netdev(rail: int) -> str:
    """The device whose addresses are KV's."""
    return f"kv{rail}"


def render_node(spec: FabricSpec, node: FabricNode) -> str:
    body = [
        *comment("Packets carry their class to the switches as DSCP."),
        "nft add table ip dualpath",
        "nft flush table ip dualpath",
        "nft 'add chain ip dualpath stamp { type filter hook postrouting priority mangle; }'",
        "",
    ]
    for rail, nic in enumerate(node.compute_nics):
        subnet = spec.subnet(TrafficClass.KV, rail)
        body += [
            *comment(f"{nic.netdev}: {nic.rate_mbps:g} Mbit/s"),
            *_kv_device(spec, node, rail, nic),
            *_marks(nic.netdev, kv_netdev(rail), subnet),
            f"tc qdisc del dev {nic.netdev} root 2>/dev/null || true",
            *(shlex.join(command) for command in htb.two_classes(nic.netdev, nic.rate_mbps * SHAPED_SHARE, subnet)),
            "",
        ]
    first = node.compute_nics[0].netdev
    return document(
        what=f"Traffic classes on the compute NICs of {node.name}: model execution by the NIC's own addresses, KV by "
        "those of a macvlan device over it. tc is software: from some tens of Gbit/s on, take RoCE, where the NIC does "
        "this.",
        where=f"{node.name}, as root; needs iproute2, nftables and the kernel's htb, u32, macvlan",
        apply="run it, and again after each boot",
        check=f"tc -s class show dev {first} counts KV in class {htb.KV_CLASS} and all else in {htb.MODEL_CLASS}; ip "
        f"-d link show {kv_netdev(0)} says macvlan mode bridge",
        body=body[:-1],
        script=True,
    )


def _kv_device(spec: FabricSpec, node: FabricNode, rail: int, nic: ComputeNic) -> list[str]:
    kv = kv_netdev(rail)
    return [
        f"ip link show {kv} >/dev/null 2>&1 || ip link add link {nic.netdev} name {kv} type macvlan mode bridge",
        f"ip addr replace {spec.address(TrafficClass.KV, node, rail)} dev {kv}",
        f"ip link set {kv} up",
        *comment("Each device answers for its own address only, else peers may send KV to the NIC's own."),
        *(
            f"echo {value} > /proc/sys/net/ipv4/conf/{device}/{name}"
            for device in (nic.netdev, kv)
            for name, value in ARP_SETTINGS
        ),
    ]


def _marks(netdev: str, kv: str, subnet: IPv4Network) -> list[str]:
    marks = {one: dscp(priority(one)) for one in TrafficClass}
    return [
        f"nft add rule ip dualpath stamp oifname {kv} ip daddr {subnet} ip dscp set {marks[TrafficClass.KV]}",
        f"nft add rule ip dualpath stamp oifname {netdev} ip dscp set {marks[TrafficClass.MODEL]}",
    ]


def render_switch() -> str:
    weights = ets_weights()
    rows = ["dscp  priority  scheduling"]
    for one in TrafficClass:
        p = priority(one)
        rows.append(f"{dscp(p):4}  {p:8}  ets {weights[p]} %  {one.value}")
    rows.append(f"   0         0  ets {weights[0]} %  unmarked")
    return document(
        what="Switches: a port towards a host is where several senders meet, so it needs the classes too.",
        where="every switch of the compute network, in its own language",
        apply="trust DSCP; give each row a queue of its own with this minimum share under contention (IEEE 802.1Qaz, "
        "ETS) and no upper limit",
        check="under KV load the counters of the KV queue rise on the ports towards the hosts",
        body=rows,
    )

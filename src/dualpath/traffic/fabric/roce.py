"""RoCE: DSCP -> priority -> traffic class and queue, in NIC and switch alike; four priorities without loss.

Commands: NVIDIA's MLNX_OFED manual, chapters "Quality of Service (QoS)" and "Explicit Congestion Notification (ECN)",
and the help texts of mlnx_qos, cma_roce_mode and cma_roce_tos in mlnx-tools. The paper (arXiv 2602.21548, appendix
A.1) gives the mapping's shape, four lossless classes and weights in the spirit of the InfiniBand ones; the numbers are
in ``lanes``.
"""

from __future__ import annotations

from dualpath.traffic.fabric.document import comment, document
from dualpath.traffic.fabric.lanes import (
    CNP_DSCP,
    CNP_PRIORITY,
    dscp,
    ets_weights,
    lossless_priorities,
    priority,
    traffic_class_byte,
)
from dualpath.traffic.fabric.spec import ComputeNic, FabricNode, TrafficClass

# Priority -> traffic class. 5 has no use here and joins the unmarked packets of 0, so that nobody gets a strict queue
# by marking; 6 (congestion notifications) and 7 (network control) are strict.
PRIO_TC = (0, 1, 2, 3, 4, 0, 6, 7)
ROCE_V2 = 2  # cma_roce_mode's number

_SWITCH_STEPS = """\
1. Trust DSCP, not 802.1p, on every port of the compute network, and do not rewrite it.
2. Map DSCP to priority and priority to queue by the table; each priority has a queue of its own on egress.
3. PFC on the four priorities, on host ports and links between switches, send and receive; headroom for each by cable
   length and MTU. PFC nowhere else: a lossless queue for unmarked packets spreads their congestion.
4. Scheduling by the table (IEEE 802.1Qaz, ETS): a minimum under contention and no upper limit, so that KV has an idle
   link for itself.
5. ECN on the four queues; mark KV's early, so that DCQCN slows it before PFC stops it.
6. PFC watchdog on, with a short timeout: a NIC that hangs in pause must not stop the network.""".splitlines()


def render_node(node: FabricNode) -> str:
    body: list[str] = []
    for nic in node.compute_nics:
        body += [*comment(f"{nic.netdev}, {nic.rdma_name}"), *_nic_commands(nic), ""]
    first = node.compute_nics[0]
    kv = TrafficClass.KV
    return document(
        what=f"Traffic classes on the compute NICs of {node.name} (NVIDIA ConnectX; needs mlnx-tools).",
        where=f"{node.name}, as root",
        apply="run it, and again after each boot and each driver restart. lldpad and other DCBX tools must not run on "
        "these NICs: they would write their own settings over these",
        check=f"mlnx_qos -i {first.netdev} shows trust state dscp, the priorities with PFC and each tc's share; under "
        f"KV load ethtool -S {first.netdev} counts tx_prio{priority(kv)}_bytes and no tx_prio0_bytes to speak of; "
        f"/sys/class/infiniband/{first.rdma_device}/tc/{first.rdma_port}/traffic_class must be unset, it would "
        "override both classes",
        body=body[:-1],
        script=True,
    )


def _nic_commands(nic: ComputeNic) -> list[str]:
    dev, lossless = nic.netdev, lossless_priorities()
    weights = ets_weights()
    algorithms = ",".join("ets" if weight else "strict" for weight in weights)
    ecn = f"/sys/class/net/{dev}/ecn"
    return [
        f"mlnx_qos -i {dev} --dcbx os",
        f"mlnx_qos -i {dev} --trust dscp",
        *(f"mlnx_qos -i {dev} --dscp2prio set,{dscp(p)},{p}" for p in lossless),  # it takes one at a time
        f"mlnx_qos -i {dev} --prio_tc {_list(PRIO_TC)}",
        f"mlnx_qos -i {dev} --tsa {algorithms} --tcbw {_list(weights)}",
        f"mlnx_qos -i {dev} --pfc {_list([int(p in lossless) for p in range(8)])}",
        f"for prio in {' '.join(map(str, lossless))}; do",
        f"  echo 1 > {ecn}/roce_np/enable/$prio",
        f"  echo 1 > {ecn}/roce_rp/enable/$prio",
        "done",
        f"echo {CNP_DSCP} > {ecn}/roce_np/cnp_dscp",
        f"cma_roce_mode -d {nic.rdma_device} -p {nic.rdma_port} -m {ROCE_V2}",
        *comment("Whoever connects by rdma_cm and asks for no class gets KV's."),
        f"cma_roce_tos -d {nic.rdma_device} -p {nic.rdma_port} -t {traffic_class_byte(TrafficClass.KV)}",
    ]


def render_switch() -> str:
    weights = ets_weights()
    owner = {priority(one): one.value for one in TrafficClass}
    rows = ["dscp  priority  queue  pfc  scheduling", "   0         0      0   no  " + f"ets {weights[0]} %"]
    for p in lossless_priorities():
        rows.append(f"{dscp(p):4}  {p:8}  {PRIO_TC[p]:5}  yes  ets {weights[p]} %  {owner.get(p, 'free')}".rstrip())
    rows.append(f"{CNP_DSCP:4}  {CNP_PRIORITY:8}  {CNP_PRIORITY:5}   no  strict  congestion notifications")
    return document(
        what="Switches: the same mapping and weights as on the NICs. A class holds only if every hop knows it.",
        where="every switch of the compute network, in its own language",
        apply="follow the steps",
        check="under KV load the counters of the KV queue rise on every hop and those of unmarked packets do not; PFC "
        "frames appear for priorities with PFC only; a collective's latency with KV is what it is without",
        body=[*rows, "", *_SWITCH_STEPS],
    )


def _list(values: tuple[int, ...] | list[int]) -> str:
    return ",".join(map(str, values))

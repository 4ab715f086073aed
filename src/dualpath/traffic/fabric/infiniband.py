"""InfiniBand: service level -> virtual lane -> arbitration, all of it set by the subnet manager.

Options and file formats: OpenSM's documents "QoS Management in OpenSM" and "OpenSM Partition configuration". Values:
the paper (arXiv 2602.21548, section 5).
"""

from __future__ import annotations

from collections.abc import Mapping

from dualpath.traffic.fabric.document import comment, document
from dualpath.traffic.fabric.lanes import (
    HIGH_LIMIT,
    LANE,
    MAX_VLS,
    VLARB_HIGH,
    VLARB_LOW,
    service_level_lanes,
)
from dualpath.traffic.fabric.spec import FabricNode, FabricSpec, TrafficClass

MODEL_PKEY = 0x0001
FULL_MEMBER = 0x8000
POLICY_FILE = "/etc/opensm/qos-policy.conf"
PARTITION_FILE = "/etc/opensm/partitions.conf"
_MODEL, _KV = LANE[TrafficClass.MODEL], LANE[TrafficClass.KV]
_RESTART = (
    "on the host of the master subnet manager and of every standby; then restart opensm (UFM: restart ufm-enterprise)"
)


def model_netdev(rail: int) -> str:
    """The IP over InfiniBand device in the model's partition: what collectives' sockets bind to."""
    return f"model{rail}"


def render_subnet_manager() -> dict[str, str]:
    return {
        "opensm.conf": _options(),
        "qos-policy.conf": _policy(),
        "partitions.conf": _partitions(),
    }


def render_node(spec: FabricSpec, node: FabricNode) -> str:
    body: list[str] = []
    for rail, nic in enumerate(node.compute_nics):
        name, pkey = model_netdev(rail), FULL_MEMBER | MODEL_PKEY
        add = f"ip link add link {nic.netdev} name {name} type ipoib pkey {pkey:#06x}"
        body += [
            f"ip link show {name} >/dev/null 2>&1 || {add}",
            f"ip addr replace {spec.address(TrafficClass.MODEL, node, rail)} dev {name}",
            f"ip link set {name} up",
        ]
    return document(
        what=f"Sockets of collectives (gloo, NCCL's bootstrap) of {node.name} in the model's partition. RDMA needs "
        "nothing here: UCX and NCCL name their service level themselves.",
        where=f"{node.name}, as root, after the subnet manager has the new partitions",
        apply="run it, and again after each boot",
        check=f"ip -d link show {model_netdev(0)} says pkey {FULL_MEMBER | MODEL_PKEY:#06x}, and nodes ping each other "
        "on it",
        body=body,
        script=True,
    )


def _options() -> str:
    options = {
        "qos": "TRUE",
        "qos_policy_file": POLICY_FILE,
        "partition_config_file": PARTITION_FILE,
        "qos_max_vls": MAX_VLS,
        "qos_high_limit": HIGH_LIMIT,
        "qos_vlarb_high": _weights(VLARB_HIGH),
        "qos_vlarb_low": _weights(VLARB_LOW),
        "qos_sl2vl": ",".join(map(str, service_level_lanes())),
    }
    return document(
        what=f"OpenSM: model execution on virtual lane {_MODEL}, KV on lane {_KV}. Lane {_KV} has weight 0 in the "
        "high-priority table: it has an idle link for itself, and about 1 % of a contended one.",
        where=f"/etc/opensm/opensm.conf (UFM: opensm.conf of its OpenSM) {_RESTART}",
        apply="put these lines in place of those of the same names; remove all qos_ca_, qos_swe_, qos_sw0_ and "
        "qos_rtr_ lines, which would win over them. Not with routing engines that use service levels themselves (LASH, "
        "DFSSSP, Torus-2QoS)",
        check=f"for NICs and switch ports: smpquery portinfo LID PORT says OperVLs VL0-{MAX_VLS - 1} and VLHighLimit "
        f"{HIGH_LIMIT}; smpquery vlarb LID PORT and smpquery sl2vl LID PORT show the tables below",
        body=[f"{name} {value}" for name, value in options.items()],
    )


def _policy() -> str:
    return document(
        what="Service levels for whoever asks the subnet manager for a path: the model's partition gets the model's, "
        "everybody else KV's. UCX (KV) and NCCL (collectives) do not ask, the engines' environment names theirs.",
        where=f"{POLICY_FILE}, {_RESTART}",
        apply="put it there as it is; opensm.conf names it",
        check=f"saquery -p --src-to-dst LID:LID says SL {_KV}",
        body=["qos-ulps", f"    any, pkey {MODEL_PKEY:#06x} : {_MODEL}", f"    default : {_KV}", "end-qos-ulps"],
    )


def _partitions() -> str:
    return document(
        what="Partitions: one for IP of collectives, the default one for everything else. RDMA of both classes stays "
        "in the default partition.",
        where=f"{PARTITION_FILE}, {_RESTART}",
        apply="merge with the partitions you have; the names do not matter, keys and service levels do",
        check=f"smpquery pkeys LID lists 0xffff and {FULL_MEMBER | MODEL_PKEY:#06x} for every NIC",
        body=[
            f"Default=0x7fff, ipoib, sl={_KV}, defmember=full : ALL=full, SELF=full ;",
            f"model={MODEL_PKEY:#06x}, ipoib, sl={_MODEL}, defmember=full : ALL_CAS=full, SELF=full ;",
            "",
            *comment("sl is the multicast group's service level; unicast asks for a path, see qos-policy.conf."),
        ],
    )


def _weights(table: Mapping[int, int]) -> str:
    return ",".join(f"{lane}:{weight}" for lane, weight in table.items())

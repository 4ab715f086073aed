"""The environment of an engine: which device and class its KV (UCX) and its collectives (NCCL, gloo) use.

Variables: UCX's own documentation (ucx_info -fc: IB_SL "Service level ... RoCEv2: Ethernet Priority", IB_TRAFFIC_CLASS
"RoCEv2 DSCP"), NCCL's user guide, chapter "Environment Variables", and torch.distributed's on GLOO_SOCKET_IFNAME. UCX
carries nothing but KV in an engine, NCCL and gloo nothing but model execution, so one process can have both classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dualpath.traffic.fabric.document import document
from dualpath.traffic.fabric.ethernet import kv_netdev
from dualpath.traffic.fabric.infiniband import model_netdev
from dualpath.traffic.fabric.lanes import LANE, priority, traffic_class_byte
from dualpath.traffic.fabric.spec import ComputeNic, Fabric, FabricNode, FabricSpec, TrafficClass

_MODEL, _KV = TrafficClass.MODEL, TrafficClass.KV


def engine_environment(fabric: Fabric, nics: Mapping[int, ComputeNic]) -> dict[str, str]:
    """Variables of a process whose engines use ``nics`` (rail -> NIC); they must be set before UCX or NCCL start."""
    netdevs = [nic.netdev for nic in nics.values()]
    if fabric is Fabric.INFINIBAND:
        return _rdma(list(nics.values())) | {
            "UCX_IB_SL": str(LANE[_KV]),
            "NCCL_IB_SL": str(LANE[_MODEL]),
            **_sockets([model_netdev(rail) for rail in nics]),
        }
    if fabric is Fabric.ROCE:
        return _rdma(list(nics.values())) | {
            "UCX_IB_TRAFFIC_CLASS": str(traffic_class_byte(_KV)),
            "UCX_IB_SL": str(priority(_KV)),
            "NCCL_IB_TC": str(traffic_class_byte(_MODEL)),
            "NCCL_IB_SL": str(priority(_MODEL)),
            **_sockets(netdevs),
        }
    return {"UCX_NET_DEVICES": ",".join(map(kv_netdev, nics)), "NCCL_IB_DISABLE": "1", **_sockets(netdevs)}


def _rdma(nics: Sequence[ComputeNic]) -> dict[str, str]:
    names = ",".join(nic.rdma_name for nic in nics)
    devices = {"UCX_NET_DEVICES": names, "NCCL_IB_HCA": f"={names}"}  # "=": these names, not prefixes
    gid_index = nics[0].gid_index
    if gid_index is not None:
        devices |= {name: str(gid_index) for name in ("UCX_IB_GID_INDEX", "NCCL_IB_GID_INDEX")}
    return devices


def _sockets(netdevs: Sequence[str]) -> dict[str, str]:
    names = ",".join(netdevs)
    return {"NCCL_SOCKET_IFNAME": f"={names}", "GLOO_SOCKET_IFNAME": names}


def render_environments(spec: FabricSpec, node: FabricNode) -> dict[str, str]:
    """File name -> text: for the engine of each NIC in a process of its own, and for one process that has them all."""
    every = dict(enumerate(node.compute_nics))
    files = {
        f"engine{rail}.env": _render(spec, node, {rail: nic}, f"the engine on compute NIC {rail} of {node.name}")
        for rail, nic in every.items()
    }
    if len(every) > 1:
        files["node.env"] = _render(spec, node, every, f"one process with all engines of {node.name}")
    return files


def _render(spec: FabricSpec, node: FabricNode, nics: Mapping[int, ComputeNic], whose: str) -> str:
    variables = [f"{name}={value}" for name, value in engine_environment(spec.fabric, nics).items()]
    return document(
        what=f"Environment of {whose}: KV by UCX, collectives by NCCL or gloo.",
        where=f"{node.name}, in the process before it starts",
        apply="for dualpath up, as env = [...] of the node in cluster.toml; else EnvironmentFile= of systemd, "
        "--env-file of a container, or in bash: set -a; . ./FILE; set +a",
        check="UCX_LOG_LEVEL=info names the devices of KV; NCCL_DEBUG=INFO names NCCL's devices and classes",
        body=variables,
    )

"""Which machines there are: one ``[[nodes]]`` entry each, with role, NICs and the environment of its process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dualpath.config.fields import Table, setting
from dualpath.core.errors import ConfigError

ROLES = ("gateway", "prefill", "decode")
RESOURCE_PREFIX = "dualpath-"
MIB = 1024**2


@dataclass(frozen=True, kw_only=True)
class NodeConfig(Table):
    """One node: a process with its engines on a host of its own, or on one that it shares."""

    TABLE = "nodes"
    name: str = setting(
        pattern=r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?",
        pattern_means="lower-case letters, digits and inner dashes",
        help="the node's name; its engines are called after it",
    )
    role: str = setting(choices=ROLES, help="gateway (with the scheduler), prefill or decode")
    engines: int = setting(1, minimum=1, maximum=64, help="engines that share the node and its storage NIC")
    resource: str | None = setting(
        None,
        none_means="dualpath-ROLE",
        help="Ray resource of which the node takes one unit: what says on which hosts it may run",
    )
    device: str | None = setting(
        None,
        pattern=r"auto|cpu|cuda(:[0-9]+)?",
        pattern_means="auto, cpu, cuda or cuda:N",
        none_means="[model] device",
        help="as [model] device, for this node",
    )
    storage_nic: str | None = setting(None, help="the device that reaches storage, e.g. s0 or mlx5_0; for people")
    storage_nic_mbps: float | None = setting(
        None, above=0, maximum=1e7, help="its rate in Mbit/s, each direction: the scheduler shares out reads by it"
    )
    pace_storage: bool = setting(
        False, help="hold the node's storage traffic to storage_nic_mbps: emulation, where nodes share one machine"
    )
    compute_nics: tuple[str, ...] = setting((), help="network devices between engines, e.g. c0; one for each engine")
    compute_nic_mbps: float | None = setting(None, above=0, maximum=1e7, help="rate of each in Mbit/s, each direction")
    rdma_devices: tuple[str, ...] = setting(
        (), help="their RDMA devices, e.g. mlx5_1 or mlx5_1:1, in the same order; these become UCX_NET_DEVICES if given"
    )
    gid_index: int | None = setting(None, minimum=0, maximum=255, help="RoCE: becomes UCX_IB_GID_INDEX")
    kv_service_level: int | None = setting(
        None, minimum=0, maximum=15, help="InfiniBand service level of KV transfers: becomes UCX_IB_SL"
    )
    kv_traffic_class: int | None = setting(
        None, minimum=0, maximum=255, help="RoCE traffic class of KV transfers: becomes UCX_IB_TRAFFIC_CLASS"
    )
    env: tuple[str, ...] = setting(
        (),
        pattern=r"[A-Za-z_][A-Za-z0-9_]*=.*",
        pattern_means="NAME=VALUE",
        help="environment of the node's process, e.g. UCX_TLS=tcp; stronger than what the fields above become",
    )
    vllm_args: tuple[str, ...] = setting(
        (), help="more arguments of this node's vLLM server, after [vllm] args, e.g. --max-num-seqs=64"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pace_storage and self.storage_nic_mbps is None:
            raise ConfigError(f"[nodes] pace_storage: node {self.name} needs storage_nic_mbps to be paced to")
        if self.role == "gateway" and self.engines != 1:
            raise ConfigError(f"[nodes] engines: node {self.name} is a gateway and has none")

    @property
    def ray_resource(self) -> str:
        return self.resource or RESOURCE_PREFIX + self.role

    @property
    def environment(self) -> dict[str, str]:
        """Of the node's process."""
        rdma = tuple(device if ":" in device else f"{device}:1" for device in self.rdma_devices)
        derived = {
            "UCX_NET_DEVICES": ",".join(rdma or self.compute_nics) or None,
            "UCX_IB_GID_INDEX": self.gid_index,
            "UCX_IB_SL": self.kv_service_level,
            "UCX_IB_TRAFFIC_CLASS": self.kv_traffic_class,
        }
        given = dict(item.split("=", 1) for item in self.env)
        return {name: str(value) for name, value in derived.items() if value is not None} | given


@dataclass(frozen=True, kw_only=True)
class RayConfig(Table):
    """Where nodes run as processes of their own: on a Ray cluster, or on a Ray that is started here."""

    TABLE = "ray"
    name: str = setting(
        "dualpath",
        flag="cluster-name",
        pattern=r"[a-z0-9][-a-z0-9]{0,30}",
        pattern_means="lower-case letters, digits and dashes",
        help="name of the running system, so that a host can have several",
    )
    address: str | None = setting(
        None,
        metavar="HOST:PORT",
        none_means="start Ray on this machine",
        help="an existing Ray cluster's address, or auto for the one that this machine is part of",
    )
    gateways: int = setting(
        1,
        minimum=1,
        maximum=64,
        help="gateways, spread over the hosts, each with an HTTP server of its own on [gateway] port; those of a host "
        "take the ports that follow; 1 runs in the scheduler's process",
    )
    object_store_bytes: int = setting(
        80 * MIB, minimum=76 * MIB, help="memory of Ray's object store where Ray is started here; KV never passes it"
    )
    join_s: float = setting(
        0.0, minimum=0, maximum=86400, help="how long hosts with nodes' resources may take to join the Ray cluster"
    )
    start_s: float = setting(600.0, above=0, maximum=86400, help="how long all nodes may take to be ready")
    heartbeat_s: float = setting(
        3.0, minimum=0.5, maximum=60, help="seconds without a sign of life after which a node's work goes elsewhere"
    )
    kill_silent_s: float = setting(
        30.0, minimum=1, maximum=3600, help="seconds of silence after which a node's process is killed and restarted"
    )
    lease_s: float = setting(
        60.0, minimum=5, maximum=3600, help="seconds without its scheduler after which a node's process ends itself"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.heartbeat_s < self.kill_silent_s < self.lease_s:
            raise ConfigError(
                f"[ray] lease_s: {self.lease_s:g} s; needed is heartbeat_s < kill_silent_s < lease_s, "
                f"there is {self.heartbeat_s:g}, {self.kill_silent_s:g}, {self.lease_s:g}"
            )


def bytes_per_s(mbps: float | None) -> float | None:
    """Of a rate in Mbit/s; None: not known, or unlimited."""
    return None if mbps is None else mbps * 1e6 / 8


def check_nodes(nodes: Sequence[NodeConfig]) -> None:
    """Raises ConfigError where these cannot be one cluster."""
    names = [node.name for node in nodes]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"[nodes] name: {name} is there {names.count(name)} times")
    for role in ("prefill", "decode"):
        if not any(node.role == role for node in nodes):
            raise ConfigError(f"[nodes] role: there is no {role} node")
    if sum(node.role == "gateway" for node in nodes) > 1:
        raise ConfigError("[nodes] role: there can be one gateway node")

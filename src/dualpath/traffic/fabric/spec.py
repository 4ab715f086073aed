"""The compute network to be configured: its kind, its nodes, their NICs. Making one checks it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Interface, IPv4Network

from dualpath.core.errors import ConfigError

MODEL_NETWORK = IPv4Network("10.2.0.0/16")  # InfiniBand: sockets of collectives, by IP over InfiniBand
KV_NETWORK = IPv4Network("10.3.0.0/16")  # Ethernet: KV is told from collectives by these addresses
RAIL_PREFIX_BITS = 24  # every rail has a subnet of this size out of its class's network
_NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_DEVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")  # Linux: at most 15 characters


class TrafficClass(str, Enum):
    """Whose a byte on the compute network is (paper, section 5): model execution's, or everything else's."""

    MODEL = "model"
    KV = "kv"


class Fabric(str, Enum):
    """What the compute network is made of."""

    INFINIBAND = "infiniband"
    ROCE = "roce"
    ETHERNET = "ethernet"

    @property
    def has_rdma(self) -> bool:
        return self is not Fabric.ETHERNET


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeNic:
    """One compute NIC of a node; the engine of the same number uses it."""

    netdev: str  # its Linux network device: ens1f0, ib0
    rate_mbps: float  # line rate in Mbit/s, each direction
    rdma_device: str | None = None  # mlx5_0; what ibdev2netdev shows beside the network device
    rdma_port: int = 1
    gid_index: int | None = None  # None: UCX and NCCL find the RoCE v2 entry themselves

    def __post_init__(self) -> None:
        for field, name in (("compute_nics", self.netdev), ("rdma_devices", self.rdma_device)):
            if name is not None and not _DEVICE_NAME.fullmatch(name):
                raise ConfigError(f"{field}: must be device names of at most 15 letters, digits, _ . -, not {name!r}")
        if not 0 < self.rate_mbps < float("inf"):
            raise ConfigError(f"compute_nic_mbps: must be more than 0, not {self.rate_mbps}")
        if not 1 <= self.rdma_port <= 254:
            raise ConfigError(f"rdma_devices: a port must be 1 to 254, not {self.rdma_port}")
        if self.gid_index is not None and not 0 <= self.gid_index <= 255:
            raise ConfigError(f"gid_index: must be 0 to 255, not {self.gid_index}")

    @property
    def rdma_name(self) -> str:
        """Device and port the way UCX and NCCL write them. Only for fabrics with RDMA."""
        assert self.rdma_device is not None
        return f"{self.rdma_device}:{self.rdma_port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricNode:
    """A host on the compute network. A host without compute NICs (storage, gateway) needs nothing and may be listed."""

    name: str
    compute_nics: tuple[ComputeNic, ...]  # the position in here is the rail
    storage_nic: str | None = None

    def __post_init__(self) -> None:
        if not _NODE_NAME.fullmatch(self.name):
            raise ConfigError(f"name: must be a host name, not {self.name!r}")
        netdevs = [nic.netdev for nic in self.compute_nics]
        twice = next((name for name in netdevs if netdevs.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"compute_nics: {twice} is listed twice")
        if self.storage_nic in netdevs:
            raise ConfigError(
                f"storage_nic: {self.storage_nic} is a compute NIC too; storage reads would run in the model's class"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricSpec:
    """All of the compute network. Addresses follow from a node's place in ``nodes`` and a NIC's in its node."""

    fabric: Fabric
    nodes: tuple[FabricNode, ...]
    model_network: IPv4Network = MODEL_NETWORK
    kv_network: IPv4Network = KV_NETWORK

    def __post_init__(self) -> None:
        names = [node.name for node in self.nodes]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"nodes: {twice} is listed twice")
        if not any(node.compute_nics for node in self.nodes):
            raise ConfigError("nodes: none has compute_nics")
        if len(names) > 2 ** (32 - RAIL_PREFIX_BITS) - 3:  # network, broadcast, and one to spare for a gateway
            raise ConfigError(f"nodes: {len(names)} do not fit a /{RAIL_PREFIX_BITS} subnet")
        self._check_networks()
        for node, rail, nic in self.nics():
            if self.fabric.has_rdma and nic.rdma_device is None:
                raise ConfigError(
                    f"node {node.name}: rdma_devices: {self.fabric.value} needs the RDMA device of {nic.netdev} "
                    f"(compute NIC {rail}); ibdev2netdev shows it"
                )

    def _check_networks(self) -> None:
        num_rails = max(len(node.compute_nics) for node in self.nodes)
        for field, network in (("model_network", self.model_network), ("kv_network", self.kv_network)):
            if network.prefixlen > RAIL_PREFIX_BITS or 2 ** (RAIL_PREFIX_BITS - network.prefixlen) < num_rails:
                raise ConfigError(
                    f"[fabric] {field}: {network} has no /{RAIL_PREFIX_BITS} for {num_rails} compute NICs"
                )
        if self.model_network.overlaps(self.kv_network):
            raise ConfigError(f"[fabric] kv_network: {self.kv_network} overlaps model_network {self.model_network}")

    def nics(self) -> Iterator[tuple[FabricNode, int, ComputeNic]]:
        """(node, rail, NIC) of every compute NIC."""
        for node in self.nodes:
            for rail, nic in enumerate(node.compute_nics):
                yield node, rail, nic

    def subnet(self, traffic_class: TrafficClass, rail: int) -> IPv4Network:
        """The addresses of one class on one rail."""
        network = self.kv_network if traffic_class is TrafficClass.KV else self.model_network
        first = int(network.network_address) + (rail << (32 - RAIL_PREFIX_BITS))
        return IPv4Network((first, RAIL_PREFIX_BITS))

    def address(self, traffic_class: TrafficClass, node: FabricNode, rail: int) -> IPv4Interface:
        """A node's address in a class: its number in ``nodes``, from 1, on the rail's subnet."""
        subnet = self.subnet(traffic_class, rail)
        return IPv4Interface(f"{subnet[self.nodes.index(node) + 1]}/{RAIL_PREFIX_BITS}")

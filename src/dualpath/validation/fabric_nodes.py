"""The compute network of the cluster that a file for ``dualpath up`` describes, for ``dualpath fabric``."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import ClassVar

from dualpath.config import NodeConfig, ServeConfig, load_config
from dualpath.config.fabric import FabricConfig
from dualpath.config.fields import tables
from dualpath.core.errors import ConfigError
from dualpath.traffic.fabric import ComputeNic, Fabric, FabricNode, FabricSpec


@dataclass(frozen=True, kw_only=True)
class _FabricFile:
    """What of the file is read here; the rest is checked by the verbs that it is for."""

    FOREIGN: ClassVar[tuple[str, ...]] = tuple(name for name, _ in tables(ServeConfig))
    fabric: FabricConfig = field(default_factory=FabricConfig)
    nodes: tuple[NodeConfig, ...] = ()


def read_fabric(file: Path, fabric: Fabric) -> FabricSpec:
    """The compute network that ``file`` describes. Raises ConfigError: "file: what: reason"."""
    config = load_config(_FabricFile, file)
    try:
        return FabricSpec(
            fabric=fabric,
            nodes=tuple(_node(node) for node in config.nodes),
            model_network=_network("model_network", config.fabric.model_network),
            kv_network=_network("kv_network", config.fabric.kv_network),
        )
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def _node(node: NodeConfig) -> FabricNode:
    try:
        return FabricNode(name=node.name, compute_nics=_nics(node), storage_nic=node.storage_nic)
    except ConfigError as error:
        raise ConfigError(f"node {node.name}: {error}") from None


def _nics(node: NodeConfig) -> tuple[ComputeNic, ...]:
    netdevs, rdma = node.compute_nics, node.rdma_devices
    if rdma and len(rdma) != len(netdevs):
        raise ConfigError(f"rdma_devices: {len(rdma)} for {len(netdevs)} compute_nics")
    if netdevs and node.compute_nic_mbps is None:
        raise ConfigError("compute_nic_mbps: is required where there are compute_nics")
    nics = []
    for rail, netdev in enumerate(netdevs):
        device, port = _rdma_device(rdma[rail]) if rdma else (None, 1)
        rate_mbps = node.compute_nic_mbps or 0.0
        nics.append(
            ComputeNic(netdev=netdev, rate_mbps=rate_mbps, rdma_device=device, rdma_port=port, gid_index=node.gid_index)
        )
    return tuple(nics)


def _rdma_device(text: str) -> tuple[str, int]:
    device, _, port = text.partition(":")
    if port and not port.isdecimal():
        raise ConfigError(f"rdma_devices: must be DEVICE or DEVICE:PORT, not {text!r}")
    return device, int(port or 1)


def _network(key: str, text: str) -> IPv4Network:
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise ConfigError(f"[fabric] {key}: {error}") from None

"""On which hosts of a Ray cluster gateways run: one on each first, this host before others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from dualpath.config import ServeConfig
from dualpath.core.errors import ConfigError
from dualpath.ray.runtime import GATEWAY


@dataclass(frozen=True, slots=True)
class RayHost:
    address: str
    node_id: str  # Ray's
    room: int  # for so many gateways


@dataclass(frozen=True, slots=True)
class GatewayPlace:
    """A gateway's."""

    node_id: str
    address: str
    offset: int  # how many others are there before it


def spread(count: int, hosts: Sequence[RayHost]) -> list[GatewayPlace]:
    """Raises ConfigError where there is not room for so many."""
    if sum(host.room for host in hosts) < count:
        raise ConfigError(
            f"[ray] gateways: {count}; hosts that may have them offer {sum(h.room for h in hosts)} places"
        )
    layers = range(max(host.room for host in hosts))
    places = (
        GatewayPlace(host.node_id, host.address, offset) for offset in layers for host in hosts if offset < host.room
    )
    return [place for _, place in zip(range(count), places, strict=False)]


def gateway_places(ray: ModuleType, config: ServeConfig) -> list[GatewayPlace]:
    """On hosts that offer the resource of the gateways' [[nodes]] entry; without one on any, a single one here."""
    count = config.ray.gateways
    node = next((node for node in config.nodes if node.role == GATEWAY), None)
    here = ray.get_runtime_context().get_node_id()
    hosts: dict[str, RayHost] = {}
    alive = [found for found in ray.nodes() if found["Alive"]]
    for found in sorted(alive, key=lambda found: (found["NodeID"] != here, found["NodeManagerAddress"])):
        room = count if node is None else int(found["Resources"].get(node.ray_resource, 0))
        if room:
            address = found["NodeManagerAddress"]
            hosts.setdefault(address, RayHost(address, found["NodeID"], room))
    return spread(count, list(hosts.values()))

"""Which nodes there are, on which device each of their engines works, and the weights they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dualpath.config import ClusterConfig, ModelConfig, NodeConfig
from dualpath.core.clock import Clock
from dualpath.core.ids import EngineId, NodeId
from dualpath.core.plan import Role
from dualpath.launch.setup import Progress as Progress
from dualpath.models.hf_model import HfModel
from dualpath.models.load import load_model


@dataclass(frozen=True, slots=True)
class Place:
    """Where an engine lives."""

    engine_id: EngineId
    node_id: NodeId
    role: Role
    device: str


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A node's engines, all of one role, and the storage NIC that they share."""

    node_id: NodeId
    role: Role
    places: tuple[Place, ...]
    paced_bytes_per_s: float | None = None  # emulated rate of its storage NIC, each direction


def embedded_plans(cluster: ClusterConfig, device: str) -> list[NodePlan]:
    """Nodes of one process, prefill first. With several CUDA devices engine i takes device i, round robin."""
    paced = None if cluster.storage_nic_mbps is None else cluster.storage_nic_mbps * 1e6 / 8
    out: list[NodePlan] = []
    for role, num_nodes in ((Role.PREFILL, cluster.prefill), (Role.DECODE, cluster.decode)):
        for node in range(num_nodes):
            first = len(out) * cluster.engines_per_node
            node_id, engine = NodeId(f"{role.value}-node{node}"), f"{role.value}{node}"
            out.append(
                NodePlan(node_id, role, _places(engine, node_id, role, cluster.engines_per_node, device, first), paced)
            )
    return out


def node_plan(node: NodeConfig, cluster: ClusterConfig, device: str) -> NodePlan:
    """A node with a process of its own: its devices count from 0."""
    mbps = node.storage_nic_mbps if node.pace_storage else cluster.storage_nic_mbps
    role, node_id = Role(node.role), NodeId(node.name)
    where = _places(node.name, node_id, role, node.engines, node.device or device, 0)
    return NodePlan(node_id, role, where, None if mbps is None else mbps * 1e6 / 8)


def _places(name: str, node_id: NodeId, role: Role, num_engines: int, device: str, first: int) -> tuple[Place, ...]:
    ids = [name] if num_engines == 1 else [f"{name}-{rank}" for rank in range(num_engines)]
    return tuple(Place(EngineId(e), node_id, role, _device(device, first + rank)) for rank, e in enumerate(ids))


def _device(device: str, number: int) -> str:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and torch.cuda.is_available():
        return f"cuda:{number % torch.cuda.device_count()}"
    return device


def load_models(config: ModelConfig, engines: Sequence[Place], clock: Clock, progress: Progress) -> list[HfModel]:
    """One model per engine; the engines of a device share one set of weights."""
    by_device: dict[str, HfModel] = {}
    models = []
    for place in engines:
        if place.device in by_device:
            models.append(by_device[place.device].share())
            continue
        start_s = clock.now_s()
        model = load_model(config.dir, dtype=config.dtype, device=place.device, name=config.served_name)
        took_s = clock.now_s() - start_s
        progress(f"model {model.spec.name} ({model.spec.family}) loaded on {place.device} in {took_s:.1f} s")
        by_device[place.device] = model
        models.append(model)
    return models


def free_device_bytes(model: HfModel, engines: Sequence[Place], use_fraction: float) -> int | None:
    """What a CUDA device has left for one engine's KV; None on a CPU."""
    if model.device.type != "cuda":
        return None
    free_bytes, total_bytes = torch.cuda.mem_get_info(model.device)
    sharing = sum(place.device == engines[0].device for place in engines)
    return int(max(0.0, free_bytes - (1.0 - use_fraction) * total_bytes) / sharing)

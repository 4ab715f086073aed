"""Which engines there are, on which node and device each, and the weights they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dualpath.config import ClusterConfig, ModelConfig
from dualpath.core.clock import Clock
from dualpath.core.ids import EngineId, NodeId
from dualpath.core.plan import Role
from dualpath.models.hf_model import HfModel
from dualpath.models.load import load_model

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an engine lives."""

    engine_id: EngineId
    node_id: NodeId
    role: Role
    device: str


def places(cluster: ClusterConfig, device: str) -> list[Place]:
    """Prefill nodes first. On a machine with several CUDA devices engine i takes device i, round robin."""
    out: list[Place] = []
    for role, num_nodes in ((Role.PREFILL, cluster.prefill), (Role.DECODE, cluster.decode)):
        for node in range(num_nodes):
            for rank in range(cluster.engines_per_node):
                suffix = f"-{rank}" if cluster.engines_per_node > 1 else ""
                engine_id = EngineId(f"{role.value}{node}{suffix}")
                out.append(Place(engine_id, NodeId(f"{role.value}-node{node}"), role, _device(device, len(out))))
    return out


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

"""Which nodes there are, on which device each of their engines works, and the weights they share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from dualpath.config import ClusterConfig, ModelConfig, NodeConfig
from dualpath.core.errors import ConfigError
from dualpath.core.handshake import read_secret
from dualpath.core.ids import EngineId, NodeId
from dualpath.core.plan import Role
from dualpath.core.runtime import Clock
from dualpath.launch.setup import Progress as Progress
from dualpath.models.hf_model import HfModel
from dualpath.models.load import load_model
from dualpath.models.parallel.leader import ParallelModel, start_leader
from dualpath.models.seam import Model


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
    nic_bytes_per_s: float | None = None  # its rate as far as known, emulated or real


def embedded_plans(cluster: ClusterConfig, device: str) -> list[NodePlan]:
    """Nodes of one process, prefill first. With several CUDA devices engine i takes device i, round robin."""
    paced = _bytes_per_s(cluster.storage_nic_mbps)
    out: list[NodePlan] = []
    for role, num_nodes in ((Role.PREFILL, cluster.prefill), (Role.DECODE, cluster.decode)):
        for node in range(num_nodes):
            first = len(out) * cluster.engines_per_node
            node_id, engine = NodeId(f"{role.value}-node{node}"), f"{role.value}{node}"
            where = _places(engine, node_id, role, cluster.engines_per_node, device, first)
            out.append(NodePlan(node_id, role, where, paced, paced))
    return out


def node_plan(node: NodeConfig, cluster: ClusterConfig, device: str) -> NodePlan:
    """A node with a process of its own: its devices count from 0."""
    paced = node.storage_nic_mbps if node.pace_storage else cluster.storage_nic_mbps
    role, node_id = Role(node.role), NodeId(node.name)
    where = _places(node.name, node_id, role, node.engines, node.device or device, 0)
    return NodePlan(node_id, role, where, _bytes_per_s(paced), _bytes_per_s(node.storage_nic_mbps or paced))


def _bytes_per_s(mbps: float | None) -> float | None:
    return None if mbps is None else mbps * 1e6 / 8


def _places(name: str, node_id: NodeId, role: Role, num_engines: int, device: str, first: int) -> tuple[Place, ...]:
    ids = [name] if num_engines == 1 else [f"{name}-{rank}" for rank in range(num_engines)]
    return tuple(Place(EngineId(e), node_id, role, _device(device, first + rank)) for rank, e in enumerate(ids))


def _device(device: str, number: int) -> str:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and torch.cuda.is_available():
        return f"cuda:{number % torch.cuda.device_count()}"
    return device


def load_models(
    config: ModelConfig, cluster: ClusterConfig, engines: Sequence[Place], clock: Clock, progress: Progress
) -> list[HfModel | ParallelModel]:
    """One model per engine; the engines of a device share one set of weights. A ParallelModel is the caller's to close.

    Raises ConfigError for what cannot be loaded, EngineLostError where ranks do not come; then nothing is left running.
    """
    by_device: dict[str, HfModel] = {}
    models: list[HfModel | ParallelModel] = []
    try:
        for place in engines:
            start_s = clock.now_s()
            if place.device in by_device and not _is_parallel(place, cluster):
                models.append(by_device[place.device].share())
                continue
            model = _load(config, cluster, place)
            models.append(model)
            if isinstance(model, HfModel):
                by_device[place.device] = model
            where = place.device if isinstance(model, HfModel) else f"{model.world} ranks"
            took_s = clock.now_s() - start_s
            progress(f"model {model.spec.name} ({model.spec.family}) loaded on {where} in {took_s:.1f} s")
    except BaseException:
        close_models(models)
        raise
    return models


def close_models(models: Iterable[Model]) -> None:
    """End the processes that run parallel models with us."""
    for model in models:
        if isinstance(model, ParallelModel):
            model.close()


def check_parallel_places(cluster: ClusterConfig, engines: Sequence[Place]) -> None:
    """Raises ConfigError where a process would have to run more than one model in parallel."""
    prefill = sum(place.role is Role.PREFILL for place in engines)
    if cluster.tensor_parallel > 1 and prefill > 1:
        raise ConfigError(
            f"[cluster] tensor_parallel: a process can have one prefill engine of {cluster.tensor_parallel} ranks, not "
            f"{prefill}; give each a node of its own under [[nodes]]"
        )
    if cluster.tensor_parallel > 1 and prefill:
        try:
            _parallel_secret(cluster)
        except ConfigError as error:
            raise ConfigError(f"[cluster] tensor_parallel_listen: {error}") from None


def _is_parallel(place: Place, cluster: ClusterConfig) -> bool:
    return cluster.tensor_parallel > 1 and place.role is Role.PREFILL


def _load(config: ModelConfig, cluster: ClusterConfig, place: Place) -> HfModel | ParallelModel:
    if not _is_parallel(place, cluster):
        return load_model(config.dir, dtype=config.dtype, device=place.device, name=config.served_name)
    return start_leader(
        config.dir,
        cluster.tensor_parallel,
        dtype=config.dtype,
        device=place.device,
        name=config.served_name,
        num_threads=torch.get_num_threads(),
        listen=parse_listen(cluster.tensor_parallel_listen),
        secret=_parallel_secret(cluster),
    )


def _parallel_secret(cluster: ClusterConfig) -> bytes | None:
    """Of processes that come from elsewhere. Raises ConfigError where there is none."""
    return None if cluster.tensor_parallel_listen is None else read_secret(os.environ)


def parse_listen(text: str | None) -> tuple[str, int] | None:
    """HOST:PORT of a setting that has been checked."""
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    return host, int(port)


def free_device_bytes(model: Model, engines: Sequence[Place], use_fraction: float) -> int | None:
    """What a CUDA device has left for one engine's KV; None on a CPU."""
    if model.device.type != "cuda":
        return None
    free_bytes, total_bytes = torch.cuda.mem_get_info(model.device)
    sharing = sum(place.device == engines[0].device for place in engines)
    return int(max(0.0, free_bytes - (1.0 - use_fraction) * total_bytes) / sharing)

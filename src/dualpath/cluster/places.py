"""Which nodes there are, on which device each of their engines works, and the weights they share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from dualpath.cluster.device_claims import claim_devices
from dualpath.cluster.setup import Progress as Progress
from dualpath.cluster.sizes import DeviceRoom
from dualpath.config import ClusterConfig, ModelConfig, NodeConfig, ServeConfig, bytes_per_s
from dualpath.core.errors import ConfigError
from dualpath.core.handshake import read_secret
from dualpath.core.ids import EngineId, NodeId
from dualpath.core.plan import Role
from dualpath.core.runtime import Clock
from dualpath.models.hf_model import HfModel
from dualpath.models.load import load_model
from dualpath.models.seam import Model

if TYPE_CHECKING:
    from dualpath.models.parallel.leader import ParallelModel


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
    emulated_nic_bytes_per_s: float | None = None  # what its storage traffic is held to, each direction
    nic_bytes_per_s: float | None = None  # its rate as far as known, emulated or real


def embedded_plans(cluster: ClusterConfig, device: str) -> list[NodePlan]:
    """Nodes of one process, prefill first. With several CUDA devices engine i takes device i, round robin."""
    emulated = bytes_per_s(cluster.storage_nic_mbps)
    out: list[NodePlan] = []
    for role, num_nodes in ((Role.PREFILL, cluster.prefill), (Role.DECODE, cluster.decode)):
        for node in range(num_nodes):
            first = len(out) * cluster.engines_per_node
            node_id, engine = NodeId(f"{role.value}-node{node}"), f"{role.value}{node}"
            devices = [_device(device, first + rank) for rank in range(cluster.engines_per_node)]
            where = _places(engine, node_id, role, devices)
            out.append(NodePlan(node_id, role, where, emulated, emulated))
    return out


def node_plan(node: NodeConfig, config: ServeConfig) -> NodePlan:
    """A node with a process of its own: of several CUDA devices it takes those that no other one here has taken."""
    role, node_id = Role(node.role), NodeId(node.name)
    where = _places(node.name, node_id, role, _own_devices(node.device or config.model.device, node.engines))
    rates = config.emulated_nic_bytes_per_s(node), config.storage_nic_bytes_per_s(node)
    return NodePlan(node_id, role, where, *rates)


def _places(name: str, node_id: NodeId, role: Role, devices: Sequence[str]) -> tuple[Place, ...]:
    ids = [name] if len(devices) == 1 else [f"{name}-{rank}" for rank in range(len(devices))]
    return tuple(Place(EngineId(e), node_id, role, device) for e, device in zip(ids, devices, strict=True))


def _own_devices(device: str, num_engines: int) -> list[str]:
    if _device(device, 0) == device or not torch.cuda.is_available() or device == "cpu":
        return [_device(device, rank) for rank in range(num_engines)]
    return [f"cuda:{number}" for number in claim_devices(num_engines, torch.cuda.device_count())]


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
            if isinstance(model, HfModel) and model.device.type == "cuda":
                progress(f"kernels: {', '.join(f'{shape}: {path}' for shape, path in model.kernel_paths.items())}")
    except BaseException:
        close_models(models)
        raise
    return models


def close_models(models: Iterable[Model]) -> None:
    """End the processes that run parallel models with us."""
    for model in models:
        if not isinstance(model, HfModel):
            cast("ParallelModel", model).close()


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
    from dualpath.models.parallel.leader import start_leader  # what processes say to each other, only where they are

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


def device_room(engines: Sequence[Place], use_fraction: float) -> dict[str, DeviceRoom]:
    """By CUDA device of these engines: what is left for all of them together. Empty on CPUs. Models are loaded."""
    found = {}
    for device in {place.device for place in engines if place.device.startswith("cuda")}:
        free_bytes, total_bytes = torch.cuda.mem_get_info(torch.device(device))
        roles = [place.role for place in engines if place.device == device]
        left = int(max(0.0, free_bytes - (1.0 - use_fraction) * total_bytes))
        found[device] = DeviceRoom(left, roles.count(Role.PREFILL), roles.count(Role.DECODE))
    return found

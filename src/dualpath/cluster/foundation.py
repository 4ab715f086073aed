"""What a process loads once for all engines that it hosts: weights, the store, sizes, and the profile's limits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from dualpath.cluster.engines import EngineBuilder
from dualpath.cluster.limits import Limits, LimitsFinder
from dualpath.cluster.model_weights import ModelUpdates
from dualpath.cluster.places import (
    NodePlan,
    Place,
    Progress,
    check_parallel_places,
    close_models,
    device_room,
    load_models,
)
from dualpath.cluster.sizes import Sizes, derive_sizes
from dualpath.config import ServeConfig
from dualpath.core.errors import ConfigError, DualPathError
from dualpath.core.keys import Namespace
from dualpath.core.runtime import Runtime
from dualpath.engine.trace import ChromeTrace
from dualpath.engine.workspace import workspace_layers
from dualpath.grammar.state import Grammars
from dualpath.grammar.vocabulary import grammars_of
from dualpath.models.seam import Model
from dualpath.scheduler.policy.systems import SystemPolicy
from dualpath.store.contract import BlockStore
from dualpath.store.open import open_store
from dualpath.traffic.local_transport import LocalNetwork

RDMA_DEVICES = Path("/sys/class/infiniband")  # where Linux lists them, InfiniBand and RoCE alike


def check_copies(copies: str | None, places: Sequence[Place]) -> None:
    """Raises ConfigError with the reason where ``[memory] copies`` cannot be had. None can always be."""
    if copies == "nic" and not rdma_devices():
        raise ConfigError(
            f"[memory] copies: nic needs an RDMA device, and this host has none ({RDMA_DEVICES} is empty or missing); "
            "leave copies out"
        )
    for place in places:
        if copies == "cuda" and not place.device.startswith("cuda"):
            raise ConfigError(f"[memory] copies: cuda needs a CUDA device, and {place.engine_id} is on {place.device}")
        if copies == "memcpy" and place.device != "cpu":
            raise ConfigError(
                f"[memory] copies: memcpy reaches host memory only, and {place.engine_id} is on {place.device}"
            )


def check_allocator(places: Sequence[Place], environment: Mapping[str, str]) -> None:
    """Raises ConfigError where torch's device memory could not be registered: its segments must not grow in place."""
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        on_cuda = any(place.device.startswith("cuda") for place in places)
        if on_cuda and "expandable_segments:true" in environment.get(name, "").replace(" ", "").lower():
            raise ConfigError(f"{name}: memory of expandable_segments cannot be registered for transfers; leave it out")


def rdma_devices() -> list[str]:
    """Their names, e.g. mlx5_0."""
    return sorted(path.name for path in RDMA_DEVICES.iterdir()) if RDMA_DEVICES.is_dir() else []


T = TypeVar("T")


class Foundation:
    """``load`` once, then ``builder`` for any number of nodes, ``close`` when their engines are closed."""

    def __init__(
        self,
        config: ServeConfig,
        plans: Sequence[NodePlan],
        system: SystemPolicy,
        runtime: Runtime,
        progress: Progress,
        trace: ChromeTrace | None = None,
        in_one_process: bool = False,
    ) -> None:
        self._config, self._system, self._runtime = config, system, runtime
        self._in_one_process = in_one_process
        self._progress, self._trace = progress, trace
        self._places = [place for plan in plans for place in plan.places]
        self._nic_bytes_per_s = min((p.nic_bytes_per_s for p in plans if p.nic_bytes_per_s is not None), default=None)
        self._models: dict[Place, Model] = {}
        self._store: BlockStore | None = None
        self._namespace: Namespace | None = None
        self._sizes: Sizes | None = None
        self._limits: Limits | None = None
        self._grammars: Grammars | None = None
        self._network = LocalNetwork(runtime)
        self._updates: ModelUpdates | None = None
        self.model_name = ""

    async def load(self) -> None:
        """Read weights, open the store. Long work runs in threads."""
        config, places = self._config, self._places
        check_copies(config.memory.copies, places)
        check_parallel_places(config.cluster, places)
        check_allocator(places, os.environ)
        threads = config.cluster.threads_per_engine or max(1, (os.cpu_count() or 1) // len(places))
        torch.set_num_threads(threads)
        models = await self._runtime.to_thread(
            load_models, config.model, config.cluster, places, self._runtime, self._progress
        )
        self._models = dict(zip(places, models, strict=True))
        self._updates = ModelUpdates(config.model, self._models, self._runtime, self._progress)
        spec, device = models[0].spec, models[0].device
        self.model_name = config.model.served_name or spec.name
        self._grammars = grammars_of(config.model.dir, spec.vocab_size, spec.eos_token_ids)
        await self._runtime.to_thread(self._grammars.warm)
        geometry = spec.geometry(config.store.block_tokens)
        rooms = device_room(places, config.memory.device_memory_fraction)
        layers = workspace_layers(geometry, streams_layers=self._system.streams_layers)
        sizes = derive_sizes(config.memory, geometry, spec.max_context_tokens, rooms.values(), layers)
        self._sizes = sizes
        if sizes.cut is not None:
            self._progress(f"warning: {sizes.cut}")
        dtype = str(spec.kv_dtype).removeprefix("torch.")
        self._namespace = Namespace(spec.fingerprint, dtype, geometry, device.type)
        self._store = await self._runtime.to_thread(open_store, config.store.url, self._namespace, geometry)
        finder = LimitsFinder(
            config,
            self._system,
            geometry,
            sizes.max_context_tokens,
            self._nic_bytes_per_s,
            self._runtime,
            self._progress,
        )
        self._limits = await self._runtime.to_thread(finder.find, models[0], threads)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
        close_models(self._models.values())
        self._models, self._updates = {}, None

    @property
    def store(self) -> BlockStore:
        return _there(self._store)

    @property
    def namespace(self) -> Namespace:
        return _there(self._namespace)

    @property
    def sizes(self) -> Sizes:
        return _there(self._sizes)

    @property
    def limits(self) -> Limits:
        return _there(self._limits)

    def model(self, place: Place) -> Model:
        return self._models[place]

    def builder(self) -> EngineBuilder:
        return EngineBuilder(
            config=self._config,
            sizes=self.sizes,
            namespace=self.namespace,
            store=self.store,
            runtime=self._runtime,
            trace=self._trace,
            system=self._system,
            quota=self.limits.quota,
            grammars=self._grammars,
            network=self._network,
            updates=self._updates,
            in_one_process=self._in_one_process,
        )


def _there(part: T | None) -> T:
    if part is None:
        raise DualPathError("the node has not been started")
    return part

"""What a process loads once for all engines that it hosts: weights, the store, sizes, and the profile's limits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import torch

from dualpath.config import ServeConfig
from dualpath.core.errors import DualPathError
from dualpath.core.keys import Namespace
from dualpath.core.runtime import Runtime
from dualpath.engine.trace import ChromeTrace
from dualpath.launch.copies import check_copies
from dualpath.launch.engines import EngineBuilder
from dualpath.launch.limits import Limits, LimitsFinder
from dualpath.launch.places import (
    NodePlan,
    Place,
    Progress,
    check_parallel_places,
    close_models,
    free_device_bytes,
    load_models,
)
from dualpath.launch.sizes import Sizes, derive_sizes
from dualpath.models.seam import Model
from dualpath.scheduler.systems import SystemPolicy
from dualpath.store.contract import BlockStore
from dualpath.store.open import open_store

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
        self.model_name = ""

    async def load(self) -> None:
        """Read weights, open the store. Long work runs in threads."""
        config, places = self._config, self._places
        check_copies(config.memory.copies, places)
        check_parallel_places(config.cluster, places)
        threads = config.cluster.threads_per_engine or max(1, (os.cpu_count() or 1) // len(places))
        torch.set_num_threads(threads)
        models = await self._runtime.to_thread(
            load_models, config.model, config.cluster, places, self._runtime, self._progress
        )
        self._models = dict(zip(places, models, strict=True))
        spec, device = models[0].spec, models[0].device
        self.model_name = config.model.served_name or spec.name
        geometry = spec.geometry(config.store.block_tokens)
        free_bytes = free_device_bytes(models[0], places, config.memory.device_memory_fraction)
        sizes = self._sizes = derive_sizes(config.memory, geometry, spec.max_context_tokens, free_bytes)
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
        self._models = {}

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
            in_one_process=self._in_one_process,
        )


def _there(part: T | None) -> T:
    if part is None:
        raise DualPathError("the node has not been started")
    return part

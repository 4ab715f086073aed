"""A whole cluster in one process: engines of all nodes, store, scheduler; real transfers, emulated storage NICs."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import torch

from dualpath.config import ServeConfig
from dualpath.core.clock import SystemClock
from dualpath.core.geometry import KvGeometry
from dualpath.core.keys import Namespace
from dualpath.core.plan import Role
from dualpath.engine.decode import DecodeEngine
from dualpath.engine.prefill import PrefillEngine
from dualpath.engine.trace import ChromeTrace
from dualpath.launch.engines import EngineBuilder
from dualpath.launch.limits import LimitsFinder
from dualpath.launch.places import Place, Progress, free_device_bytes, load_models, places
from dualpath.launch.sizes import derive_sizes
from dualpath.models.seam import Model
from dualpath.scheduler.service import Service
from dualpath.scheduler.systems import system_policy
from dualpath.store.contract import BlockStore
from dualpath.store.header import object_bytes
from dualpath.store.index import BlockIndex
from dualpath.store.open import open_store
from dualpath.store.parents import learn_parents
from dualpath.traffic.storage_nic import StorageNic

log = logging.getLogger(__name__)


class EmbeddedCluster:
    """Build with ``start``, take apart with ``close``; ``service`` serves requests in between."""

    def __init__(self, config: ServeConfig, progress: Progress = log.info) -> None:
        self._config = config
        self._progress = progress
        self.system = system_policy(config.cluster.system, config.cluster.path)
        self._clock = SystemClock()
        self.trace = ChromeTrace() if config.observe.trace_out else None
        self.model_dir: Path = config.model.dir
        self.prefill_engines: list[PrefillEngine] = []
        self.decode_engines: list[DecodeEngine] = []
        self._store: BlockStore | None = None
        self._namespace: Namespace | None = None
        self._service: Service | None = None
        self._learning: asyncio.Task[object] | None = None

    @property
    def service(self) -> Service:
        assert self._service is not None, "the cluster has not been started"
        return self._service

    @property
    def store(self) -> BlockStore:
        assert self._store is not None, "the cluster has not been started"
        return self._store

    @property
    def namespace(self) -> Namespace:
        assert self._namespace is not None, "the cluster has not been started"
        return self._namespace

    @property
    def geometry(self) -> KvGeometry:
        return self.namespace.geometry

    async def start(self) -> None:
        """Load, allocate, connect. On any error nothing is left running."""
        try:
            await self._start()
        except BaseException:
            await self.close(0.0)
            raise

    async def _start(self) -> None:
        config = self._config
        engines = places(config.cluster, config.model.device)
        if self.system.skips_io:
            log.warning("system %s moves no KV: every answer is invalid", self.system.name)
        threads = config.cluster.threads_per_engine or max(1, (os.cpu_count() or 1) // len(engines))
        torch.set_num_threads(threads)
        models = await asyncio.to_thread(load_models, config.model, engines, self._clock, self._progress)
        spec, device = models[0].spec, models[0].device
        geometry = spec.geometry(config.store.block_tokens)
        free_bytes = free_device_bytes(models[0], engines, config.memory.device_memory_fraction)
        sizes = derive_sizes(config.memory, geometry, spec.max_context_tokens, free_bytes)
        self._namespace = Namespace(spec.fingerprint, str(spec.kv_dtype).removeprefix("torch."), geometry, device.type)
        self._store = await asyncio.to_thread(open_store, config.store.url, self._namespace, geometry)
        index = await asyncio.to_thread(self._index, self._store)
        finder = LimitsFinder(config, self.system, geometry, sizes.max_context_tokens, self._clock, self._progress)
        limits = await asyncio.to_thread(finder.find, models[0], threads)
        nics = {place.node_id: self._storage_nic() for place in engines}
        builder = EngineBuilder(
            config=config,
            sizes=sizes,
            namespace=self._namespace,
            store=self._store,
            nics=nics,
            clock=self._clock,
            trace=self.trace,
            system=self.system,
            quota=limits.quota,
        )
        for place, model in zip(engines, models, strict=True):
            await self._start_engine(builder, place, model)
        self._service = Service(
            prefill_engines=self.prefill_engines,
            decode_engines=self.decode_engines,
            index=index,
            store=self._store,
            namespace=self._namespace,
            model_name=config.model.served_name or spec.name,
            config=limits.scheduler,
            clock=self._clock,
            max_context_tokens=sizes.max_context_tokens,
        )
        await self._service.start()
        self._learning = asyncio.create_task(learn_parents(index, self._store))

    async def close(self, drain_s: float) -> None:
        """Let running requests end for up to ``drain_s``, cancel the rest, free everything."""
        if self._service is not None:
            await self._service.close(drain_s)
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.gather(self._learning, return_exceptions=True)
        for prefill in self.prefill_engines:
            await prefill.close()
        for decode in self.decode_engines:
            await decode.close()
        self.prefill_engines, self.decode_engines = [], []
        if self._store is not None:
            self._store.close()
            self._store = None
        if self.trace is not None and self._config.observe.trace_out is not None:
            self.trace.write(self._config.observe.trace_out)

    # -- parts ----------------------------------------------------------------------------------------------------

    def _index(self, store: BlockStore) -> BlockIndex:
        """Find the blocks that earlier runs have stored; objects of a wrong size go."""
        index = BlockIndex(object_bytes(store.geometry), self._clock)
        for key in index.rebuild(store):
            store.delete(key)
        self._progress(f"store {store.url}: {len(index)} blocks found")
        return index

    def _storage_nic(self) -> StorageNic:
        mbps = self._config.cluster.storage_nic_mbps
        return StorageNic(None if mbps is None else mbps * 1e6 / 8, self._clock)

    async def _start_engine(self, builder: EngineBuilder, place: Place, model: Model) -> None:
        if place.role is Role.PREFILL:
            prefill = builder.prefill(place, model)
            self.prefill_engines.append(prefill)
            await prefill.start()
        else:
            decode = builder.decode(place, model)
            self.decode_engines.append(decode)
            await decode.start()
        self._progress(f"{place.engine_id} ready on {place.device}")

"""A whole cluster in one process: engines of all nodes, store, scheduler; real transfers, emulated storage NICs."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dualpath.config import ServeConfig
from dualpath.core.clock import SystemClock
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import EngineId, NodeId
from dualpath.core.keys import Namespace
from dualpath.core.plan import Role
from dualpath.engine.decode import DecodeConfig, DecodeEngine
from dualpath.engine.prefill import PrefillConfig, PrefillEngine
from dualpath.engine.trace import ChromeTrace
from dualpath.launch.sizes import NUM_WRITE_SLOTS, Sizes, derive_sizes
from dualpath.models.hf_model import HfModel
from dualpath.models.load import load_model
from dualpath.models.seam import Model
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.service import Service
from dualpath.store.contract import BlockStore
from dualpath.store.header import object_bytes
from dualpath.store.index import BlockIndex
from dualpath.store.open import open_store
from dualpath.traffic.manager import TrafficManager
from dualpath.traffic.nixl_transport import NixlTransport
from dualpath.traffic.storage_nic import StorageNic

log = logging.getLogger(__name__)

READ_AHEAD_S = 3.0  # alpha: tokens a node reads in this time (paper section 6)
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an engine lives."""

    engine_id: EngineId
    node_id: NodeId
    role: Role
    device: str


class EmbeddedCluster:
    """Build with ``start``, take apart with ``close``; ``service`` serves requests in between."""

    def __init__(self, config: ServeConfig, progress: Progress = log.info) -> None:
        self._config = config
        self._progress = progress
        self._clock = SystemClock()
        self.trace = ChromeTrace() if config.observe.trace_out else None
        self.model_dir: Path = config.model.dir
        self.prefill_engines: list[PrefillEngine] = []
        self.decode_engines: list[DecodeEngine] = []
        self._store: BlockStore | None = None
        self._namespace: Namespace | None = None
        self._service: Service | None = None

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
        cluster = self._config.cluster
        places = self._places()
        torch.set_num_threads(cluster.threads_per_engine or max(1, (os.cpu_count() or 1) // len(places)))
        models = await asyncio.to_thread(self._load_models, places)
        spec = models[0].spec
        geometry = spec.geometry(self._config.store.block_tokens)
        sizes = derive_sizes(self._config.memory, geometry, spec.max_context_tokens, self._free_device_bytes(models[0]))
        namespace = Namespace(
            spec.fingerprint, str(spec.kv_dtype).removeprefix("torch."), geometry, numerics=models[0].device.type
        )
        self._namespace = namespace
        store = self._store = await asyncio.to_thread(open_store, self._config.store.url, namespace, geometry)
        index = BlockIndex(object_bytes(geometry), self._clock)
        await asyncio.to_thread(index.rebuild, store)
        self._progress(f"store {self._config.store.url}: {len(index)} blocks found")
        nics = {place.node_id: self._storage_nic() for place in places}
        for place, model in zip(places, models, strict=True):
            await self._start_engine(place, model, geometry, namespace, sizes, store, nics[place.node_id])
        self._service = Service(
            prefill_engines=self.prefill_engines,
            decode_engines=self.decode_engines,
            index=index,
            store=store,
            namespace=namespace,
            model_name=self._config.model.served_name or spec.name,
            config=self._scheduler_config(geometry),
            clock=self._clock,
            max_context_tokens=sizes.max_context_tokens,
        )
        await self._service.start()

    async def close(self, drain_s: float) -> None:
        """Let running requests end for up to ``drain_s``, cancel the rest, free everything."""
        if self._service is not None:
            await self._service.close(drain_s)
        for engine in [*self.prefill_engines, *self.decode_engines]:
            await engine.close()
        self.prefill_engines, self.decode_engines = [], []
        if self._store is not None:
            self._store.close()
            self._store = None
        if self.trace is not None and self._config.observe.trace_out is not None:
            self.trace.write(self._config.observe.trace_out)

    # -- parts ----------------------------------------------------------------------------------------------------

    def _places(self) -> list[Place]:
        """Engine i of a machine with several CUDA devices takes device i, round robin."""
        cluster, places = self._config.cluster, []
        for role, count in ((Role.PREFILL, cluster.prefill), (Role.DECODE, cluster.decode)):
            for node in range(count):
                for rank in range(cluster.engines_per_node):
                    suffix = f"-{rank}" if cluster.engines_per_node > 1 else ""
                    places.append(
                        Place(
                            EngineId(f"{role.value}{node}{suffix}"),
                            NodeId(f"{role.value}-node{node}"),
                            role,
                            self._device(len(places)),
                        )
                    )
        return places

    def _device(self, number: int) -> str:
        device = self._config.model.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and torch.cuda.is_available():
            return f"cuda:{number % torch.cuda.device_count()}"
        return device

    def _load_models(self, places: list[Place]) -> list[Model]:
        """One set of weights per device; engines of a device share it."""
        config, by_device = self._config.model, dict[str, HfModel]()
        models: list[Model] = []
        for place in places:
            first = by_device.get(place.device)
            if first is None:
                start_s = self._clock.now_s()
                first = by_device[place.device] = load_model(
                    config.dir, dtype=config.dtype, device=place.device, name=config.served_name
                )
                took_s = self._clock.now_s() - start_s
                self._progress(
                    f"model {first.spec.name} ({first.spec.family}) loaded on {place.device} in {took_s:.1f} s"
                )
                models.append(first)
            else:
                models.append(first.share())
        return models

    def _free_device_bytes(self, model: Model) -> int | None:
        if model.device.type != "cuda":
            return None
        free_bytes, total_bytes = torch.cuda.mem_get_info(model.device)
        reserved = (1.0 - self._config.memory.device_memory_fraction) * total_bytes
        engines = self._config.cluster
        per_device = max(1, (engines.prefill + engines.decode) * engines.engines_per_node // torch.cuda.device_count())
        return int(max(0.0, free_bytes - reserved) / per_device)

    def _storage_nic(self) -> StorageNic:
        mbps = self._config.cluster.storage_nic_mbps
        return StorageNic(None if mbps is None else mbps * 1e6 / 8, self._clock)

    async def _start_engine(
        self,
        place: Place,
        model: Model,
        geometry: KvGeometry,
        namespace: Namespace,
        sizes: Sizes,
        store: BlockStore,
        nic: StorageNic,
    ) -> None:
        deadlines = self._config.deadlines
        is_prefill = place.role is Role.PREFILL
        traffic = TrafficManager(
            engine_id=place.engine_id,
            node_id=place.node_id,
            role=place.role,
            geometry=geometry,
            namespace_digest=namespace.digest,
            num_slots=sizes.prefill_slots if is_prefill else sizes.decode_slots,
            num_write_slots=0 if is_prefill else NUM_WRITE_SLOTS,
            transport=NixlTransport(place.engine_id),
            open_io=lambda transport: store.open_io(transport.agent),
            storage_nic=nic,
            clock=self._clock,
            storage_deadline_s=deadlines.storage_read_s,
            transfer_deadline_s=deadlines.transfer_s,
        )
        common = {"engine_id": place.engine_id, "node_id": place.node_id, "model": model, "geometry": geometry}
        if self.trace is not None:
            traffic.trace = self._transfer_spans(self.trace, place.engine_id)
        engine: PrefillEngine | DecodeEngine
        if is_prefill:
            prefill = PrefillConfig(
                sizes.workspace_tokens,
                self._config.memory.prefill_batch_tokens,
                deadlines.slot_s,
                deadlines.transfer_s,
            )
            engine = PrefillEngine(**common, traffic=traffic, config=prefill, clock=self._clock, trace=self.trace)
            self.prefill_engines.append(engine)
        else:
            decode = DecodeConfig(sizes.decode_kv_tokens, slot_deadline_s=deadlines.slot_s)
            engine = DecodeEngine(
                **common, namespace=namespace, traffic=traffic, config=decode, clock=self._clock, trace=self.trace
            )
            self.decode_engines.append(engine)
        await engine.start()
        self._progress(f"{place.engine_id} ready on {place.device}")

    @staticmethod
    def _transfer_spans(trace: ChromeTrace, engine_id: EngineId) -> Callable[[str, float, float, Any], None]:
        """Transfers of a kind share a row beside the engine's compute."""
        return lambda name, start_s, end_s, args: trace.span(engine_id, name, name, start_s, end_s, dict(args))

    def _scheduler_config(self, geometry: KvGeometry) -> SchedulerConfig:
        config, cluster = self._config.scheduler, self._config.cluster
        settings = SchedulerConfig(
            path_policy=cluster.path,
            max_queued_requests=config.max_queued_requests,
            max_retries=config.max_retries,
            capacity_bytes=self._config.store.capacity_bytes,
        )
        if cluster.storage_nic_mbps is None:
            return settings
        rate = cluster.storage_nic_mbps * 1e6 / 8
        return replace(
            settings,
            default_nic_bytes_per_s=rate,
            alpha_tokens=max(1, int(READ_AHEAD_S * rate / geometry.bytes_per_token)),
        )

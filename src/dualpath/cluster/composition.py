"""The composition root: nodes, the block index over the store, the scheduler's desk and a service over all engines.

The same wherever nodes live: ``cluster.embedded`` has them all in this process, ``cluster.remote`` each in one of
its own. Knows no model, so that a process without engines does not load what engines need.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dualpath.cluster.describe import cluster_facts
from dualpath.cluster.setup import Progress
from dualpath.cluster.weights_notes import WeightsNotes
from dualpath.config import ServeConfig
from dualpath.core.errors import StoreError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.keys import Namespace
from dualpath.core.runtime import Runtime, SystemRuntime
from dualpath.core.starts_whole import StartsWhole
from dualpath.core.stats import NodeStats
from dualpath.protocol.api import DecodeEngineClient, NodeCalls, PrefillEngineClient
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.desk.desk import Desk
from dualpath.scheduler.policy.systems import system_policy
from dualpath.scheduler.scheduler import Scheduler
from dualpath.scheduler.service import Service
from dualpath.store.contract import BlockStore, StoredBlock
from dualpath.store.header import object_bytes
from dualpath.store.index import BlockIndex
from dualpath.store.open import open_store, parse_url
from dualpath.store.parents import learn_parents
from dualpath.store.ranked import parts_listed
from dualpath.store.shelved import ShelvedStore

log = logging.getLogger(__name__)

_ADOPTED_AT_ONCE = 256
_LISTING_S = 60.0  # without another block: storage hangs


@dataclass(frozen=True, slots=True)
class Nodes:
    """All nodes, ready: their engines, and what is the same on every one."""

    prefill_engines: Sequence[PrefillEngineClient]
    decode_engines: Sequence[DecodeEngineClient]
    namespace: Namespace
    store: BlockStore  # for listing and deleting, in this process
    model_name: str
    max_context_tokens: int
    scheduler: SchedulerConfig


class ServingCluster(StartsWhole):
    """``service`` serves requests in between."""

    def __init__(self, config: ServeConfig, progress: Progress = log.info, runtime: Runtime | None = None) -> None:
        self._config = config
        self._progress = progress
        self.system = system_policy(config.cluster.system, config.cluster.path)
        self._runtime = runtime or SystemRuntime()
        self.model_dir: Path = config.model.dir
        self._nodes: Nodes | None = None
        self._scheduler: Scheduler | None = None
        self._index_of_blocks: BlockIndex | None = None
        self._shelved: ShelvedStore | None = None
        self._learning: dict[bytes, asyncio.Task[object]] = {}
        self._notes: asyncio.Task[None] | None = None

    @abstractmethod
    async def _start_nodes(self) -> Nodes:
        """Return when every engine is ready."""

    async def _open_store(self, namespace: Namespace) -> BlockStore:
        """For other weights than those that the nodes were started with."""
        return await self._runtime.to_thread(open_store, self._config.store.url, namespace, namespace.geometry)

    @abstractmethod
    async def _close_nodes(self) -> None:
        """Also after a start that failed half way."""

    def _held(self) -> list[tuple[EngineId, RequestId]]:
        """What requests of a former scheduler hold of the engines."""
        return []

    def _former_gateways(self) -> list[str]:
        """Gateways elsewhere that were there before this process."""
        return []

    def _node_calls(self) -> Mapping[NodeId, NodeCalls]:
        """Where gateways may have sessions of their own."""
        return {}

    def _describe_nodes(self) -> tuple[NodeStats, ...]:
        return ()

    @property
    def scheduler(self) -> Scheduler:
        assert self._scheduler is not None, "the cluster has not been started"
        return self._scheduler

    @property
    def service(self) -> Service:
        return self.scheduler.service

    @property
    def desk(self) -> Desk:
        return self.scheduler.desk

    @property
    def index(self) -> BlockIndex:
        assert self._index_of_blocks is not None, "the cluster has not been started"
        return self._index_of_blocks

    @property
    def nodes(self) -> Nodes:
        assert self._nodes is not None, "the cluster has not been started"
        return self._nodes

    @property
    def shelved(self) -> ShelvedStore:
        """What is stored for all weights that were used."""
        assert self._shelved is not None, "the cluster has not been started"
        return self._shelved

    @property
    def namespace(self) -> Namespace:
        return self.nodes.namespace

    @property
    def geometry(self) -> KvGeometry:
        return self.namespace.geometry

    async def _start(self) -> None:
        """Load, allocate, connect."""
        if self.system.skips_io and not self._config.cluster.allow_invalid_answers:
            log.warning("system %s moves no KV: every answer is invalid", self.system.name)
        nodes = self._nodes = await self._start_nodes()
        index = self._index_of_blocks = await self._find_blocks(nodes.store)
        self._shelved = ShelvedStore(nodes.store, index)
        self._scheduler = Scheduler(
            prefill_engines=nodes.prefill_engines,
            decode_engines=nodes.decode_engines,
            index=index,
            store=self._shelved,
            namespace=nodes.namespace,
            model_name=nodes.model_name,
            config=nodes.scheduler,
            runtime=self._runtime,
            max_context_tokens=nodes.max_context_tokens,
            describe_nodes=self._describe_nodes,
            facts=cluster_facts(
                self._config,
                nodes.namespace.geometry,
                nodes.scheduler,
                nodes.prefill_engines,
                nodes.decode_engines,
            ),
            open_namespace=self._open_namespace,
            nodes=self._node_calls(),
        )
        await self._scheduler.start(self._held(), self._former_gateways())
        self._learning[nodes.namespace.digest] = asyncio.create_task(learn_parents(index, self._shelved, self._runtime))
        self._begin_notes(nodes)

    def _begin_notes(self, nodes: Nodes) -> None:
        """Where others can see the store."""
        url, desk = self._config.store.url, self.desk
        if parse_url(url)[0] != "memory":
            notes = WeightsNotes(
                url, nodes.model_name, str(self.model_dir), nodes.namespace, lambda: desk.updates.epoch, self._runtime
            )
            self._notes = asyncio.create_task(notes.run())

    async def close(self, drain_s: float) -> None:
        if self._scheduler is not None:
            await self._scheduler.close(drain_s)
        tasks = [*self._learning.values(), *([] if self._notes is None else [self._notes])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._close_nodes()
        self._nodes = None

    async def _open_namespace(self, namespace: Namespace) -> None:
        """Of other weights: what earlier runs have stored for them is known when they are used."""
        index, digest = self.index, namespace.digest
        if index.knows_namespace(digest):
            return
        assert self._shelved is not None
        store = await self._open_store(namespace)
        self._shelved.add(store)
        found: list[StoredBlock] = []
        try:
            async with asyncio.timeout(_LISTING_S):
                found = await self._runtime.to_thread(lambda: list(store.list_blocks()))
        except TimeoutError:
            log.warning("%s: no answer for %g s: blocks of earlier runs are computed again", store.url, _LISTING_S)
        index.adopt(digest, ())
        for start in range(0, len(found), _ADOPTED_AT_ONCE):
            index.adopt(digest, found[start : start + _ADOPTED_AT_ONCE])
            await self._runtime.sleep_s(0)
        if found:
            self._learning[digest] = asyncio.create_task(learn_parents(index, self._shelved, self._runtime))

    async def _find_blocks(self, store: BlockStore) -> BlockIndex:
        """Find the blocks that earlier runs have stored. Raises StoreError where listing fails, or finds no more."""
        index = BlockIndex(object_bytes(store.geometry), self._runtime, store.namespace_digest)
        listing = asyncio.ensure_future(self._runtime.to_thread(index.rebuild, store))
        num_listed = -1
        while not listing.done():
            if num_listed == index.num_listed + parts_listed(store):
                raise StoreError(f"{store.url}: no answer for {_LISTING_S:g} s; {num_listed} blocks were listed")
            num_listed = index.num_listed + parts_listed(store)
            await asyncio.wait([listing], timeout=_LISTING_S)
        listing.result()
        self._progress(f"store {store.url}: {len(index)} blocks found")
        if num_useless := index.num_useless():
            log.warning("store %s: %d objects of a wrong size are deleted", store.url, num_useless)
        return index

"""The composition root: nodes, the block index over the store, and the scheduler's service over all engines.

The same wherever nodes live: ``launch.cluster`` has them all in this process, ``launch.remote_cluster`` each in one of
its own. Knows no model, so that a process without engines does not load what engines need.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dualpath.config import ServeConfig
from dualpath.core.geometry import KvGeometry
from dualpath.core.keys import Namespace
from dualpath.core.runtime import Runtime, SystemRuntime
from dualpath.core.stats import NodeStats
from dualpath.engine.api import DecodeEngineClient, PrefillEngineClient
from dualpath.launch.setup import Progress
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.service import Service
from dualpath.scheduler.systems import system_policy
from dualpath.store.contract import BlockStore
from dualpath.store.header import object_bytes
from dualpath.store.index import BlockIndex
from dualpath.store.parents import learn_parents

log = logging.getLogger(__name__)


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


class Cluster(ABC):
    """Build with ``start``, take apart with ``close``; ``service`` serves requests in between."""

    def __init__(self, config: ServeConfig, progress: Progress = log.info, runtime: Runtime | None = None) -> None:
        self._config = config
        self._progress = progress
        self.system = system_policy(config.cluster.system, config.cluster.path)
        self._runtime = runtime or SystemRuntime()
        self.model_dir: Path = config.model.dir
        self._nodes: Nodes | None = None
        self._service: Service | None = None
        self._index_of_blocks: BlockIndex | None = None
        self._learning: asyncio.Task[object] | None = None

    @abstractmethod
    async def _start_nodes(self) -> Nodes:
        """Return when every engine is ready."""

    @abstractmethod
    async def _close_nodes(self) -> None:
        """Also after a start that failed half way."""

    def _describe_nodes(self) -> tuple[NodeStats, ...]:
        return ()

    @property
    def service(self) -> Service:
        assert self._service is not None, "the cluster has not been started"
        return self._service

    @property
    def index(self) -> BlockIndex:
        assert self._index_of_blocks is not None, "the cluster has not been started"
        return self._index_of_blocks

    @property
    def nodes(self) -> Nodes:
        assert self._nodes is not None, "the cluster has not been started"
        return self._nodes

    @property
    def store(self) -> BlockStore:
        return self.nodes.store

    @property
    def namespace(self) -> Namespace:
        return self.nodes.namespace

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
        if self.system.skips_io:
            log.warning("system %s moves no KV: every answer is invalid", self.system.name)
        nodes = self._nodes = await self._start_nodes()
        index = self._index_of_blocks = await self._runtime.to_thread(self._find_blocks, nodes.store)
        self._service = Service(
            prefill_engines=nodes.prefill_engines,
            decode_engines=nodes.decode_engines,
            index=index,
            store=nodes.store,
            namespace=nodes.namespace,
            model_name=nodes.model_name,
            config=nodes.scheduler,
            runtime=self._runtime,
            max_context_tokens=nodes.max_context_tokens,
            describe_nodes=self._describe_nodes,
        )
        await self._service.start()
        self._learning = asyncio.create_task(learn_parents(index, nodes.store, self._runtime))

    async def close(self, drain_s: float) -> None:
        """Let running requests end for up to ``drain_s``, cancel the rest, free everything."""
        if self._service is not None:
            await self._service.close(drain_s)
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.gather(self._learning, return_exceptions=True)
        await self._close_nodes()
        self._nodes = None

    def _find_blocks(self, store: BlockStore) -> BlockIndex:
        """Find the blocks that earlier runs have stored; objects of a wrong size go."""
        index = BlockIndex(object_bytes(store.geometry), self._runtime)
        for key in index.rebuild(store):
            store.delete(key)
        self._progress(f"store {store.url}: {len(index)} blocks found")
        return index

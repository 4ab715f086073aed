"""The simulated process of scheduler and index: real cluster, real service, and a desk for gateways elsewhere."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping

from dualpath.cluster.composition import Nodes, ServingCluster
from dualpath.cluster.remote import RemoteCluster
from dualpath.config import ServeConfig
from dualpath.core.errors import DualPathError
from dualpath.core.ids import NodeId
from dualpath.core.keys import Namespace
from dualpath.engine.decode import DecodeEngine
from dualpath.engine.prefill import PrefillEngine
from dualpath.protocol.channel import Process as ChannelEnd
from dualpath.scheduler.desk.server import DeskServer
from dualpath.scheduler.service import Service
from dualpath.store.contract import BlockStore
from dualpath.testing.hash_model import NAMESPACE
from dualpath.testing.loop import VirtualLoop
from dualpath.testing.nodes import NOTICED_S, SimChannel, SimNode, carry_out, fail
from dualpath.testing.parts import (
    GATEWAY_LEASE_S,
    MAX_CONTEXT_TOKENS,
    FaultyStore,
    NodeWorks,
    Surroundings,
    node_names,
    scheduler_config,
)
from dualpath.testing.runtime import VirtualRuntime
from dualpath.testing.server import SimServer


class _Embedded(ServingCluster):
    """All engines in the scheduler's process."""

    def __init__(self, config: ServeConfig, around: Surroundings, runtime: VirtualRuntime) -> None:
        super().__init__(config, lambda _: None, runtime)
        self._around, self._virtual = around, runtime
        self._works = [NodeWorks(around, name, role, runtime) for name, role in node_names(around.scenario).items()]

    async def _start_nodes(self) -> Nodes:
        for works in self._works:
            await works.start()
        engines = [engine for works in self._works for engine in works.engines]
        return Nodes(
            [engine for engine in engines if isinstance(engine, PrefillEngine)],
            [engine for engine in engines if isinstance(engine, DecodeEngine)],
            NAMESPACE,
            FaultyStore(self._around.url, self._around.weather, self._virtual),
            "hash",
            MAX_CONTEXT_TOKENS,
            scheduler_config(self._around.scenario),
        )

    async def _open_store(self, namespace: Namespace) -> BlockStore:
        return FaultyStore(self._around.url, self._around.weather, self._virtual, namespace.digest)

    async def _close_nodes(self) -> None:
        for works in self._works:
            await works.close()


class _Remote(RemoteCluster):
    """Its own store is the faulty one, too."""

    def __init__(
        self, config: ServeConfig, around: Surroundings, nodes: Mapping[str, SimNode], runtime: VirtualRuntime
    ) -> None:
        channels = {NodeId(name): SimChannel(node, around, runtime) for name, node in nodes.items()}
        super().__init__(config, channels, lambda _: None, runtime, has_gateways=around.scenario.num_gateways > 0)
        self._around, self._virtual = around, runtime

    async def _open_store(self, namespace: Namespace) -> BlockStore:
        return FaultyStore(self._around.url, self._around.weather, self._virtual, namespace.digest)

    async def _start_nodes(self) -> Nodes:
        store = FaultyStore(self._around.url, self._around.weather, self._virtual)
        return dataclasses.replace(await super()._start_nodes(), store=store)


class Front(SimServer):
    """The scheduler's process: clients' only server, or the desk that gateways reach by ``carry_out``."""

    def __init__(
        self,
        around: Surroundings,
        config: ServeConfig,
        nodes: Mapping[str, SimNode],
        loop: VirtualLoop,
        log: Callable[[str], None],
    ) -> None:
        self._config, self._nodes = config, nodes
        self.cluster: ServingCluster | None = None
        self._desk: DeskServer | None = None
        self._pending: dict[asyncio.Future[bytes], None] = {}
        super().__init__("scheduler", around, loop, log)

    @property
    def service(self) -> Service:
        assert self.cluster is not None
        return self.cluster.service

    async def _begin(self, runtime: VirtualRuntime) -> None:
        if self._around.scenario.is_remote:
            cluster: ServingCluster = _Remote(self._config, self._around, self._nodes, runtime)
        else:
            cluster = _Embedded(self._config, self._around, runtime)
        await cluster.start()
        if self._around.scenario.num_gateways:
            assert isinstance(cluster, _Remote)
            self._desk = cluster.desk_server(GATEWAY_LEASE_S)
        self.cluster = cluster

    def _end(self) -> None:
        self._loop.bury(self.cluster, self._desk)
        self._desk = None
        if not self._around.scenario.is_remote:
            for engine_id, engine in list(self._around.engines.items()):
                self._around.fabric.kill(engine_id)
                self._loop.bury(engine)
            self._around.engines.clear()
        for question in self._pending:
            self._loop.call_later(NOTICED_S, fail, question, DualPathError("the connection broke"))
        self._pending = {}

    async def carry_out(self, ask: Callable[[ChannelEnd], Awaitable[bytes]]) -> bytes:
        if self._desk is None:
            raise DualPathError("the scheduler is not there yet")
        return await carry_out(self._desk, ask, self._loop, self.context, self._pending)

    async def close(self) -> None:
        """An orderly end."""
        assert self.cluster is not None
        await self._loop.create_task(self.cluster.close(5.0), context=self.context)

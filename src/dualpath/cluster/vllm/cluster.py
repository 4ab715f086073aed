"""A cluster of vLLM servers: one engine, one node and one control line each, under the same scheduler as ours."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from dualpath.cluster.limits import LimitsFinder
from dualpath.cluster.remote import RemoteCluster
from dualpath.cluster.setup import Progress
from dualpath.cluster.vllm.plan import check, new_places
from dualpath.cluster.vllm.servers import JoinedServers, Servers, StartedServers
from dualpath.config import NodeConfig, ServeConfig
from dualpath.core.errors import ConfigError
from dualpath.core.exchange import Exchanges
from dualpath.core.ids import NodeId
from dualpath.core.plan import Role
from dualpath.core.runtime import Runtime
from dualpath.protocol.api import EngineInfo
from dualpath.protocol.node_link import LinkConfig, NodeLink
from dualpath.protocol.wire import NodeReport
from dualpath.scheduler.config import SchedulerConfig
from dualpath.vllm.engine_client import add_engine
from dualpath.vllm.upstream import VllmUpstream

_LOOK_S = 0.5


class VllmCluster(RemoteCluster):
    """Over servers that somebody else looks after, or starts its own where ``config.vllm.join`` names none."""

    def __init__(
        self,
        config: ServeConfig,
        progress: Progress,
        runtime: Runtime | None = None,
        servers: Servers | None = None,
        *,
        has_gateways: bool = False,
    ) -> None:
        """``servers``: of ``config.nodes``, by their names. Raises ConfigError, also where vLLM cannot be run."""
        check(config)
        self._servers = servers or _own_servers(config, progress)
        self.exchanges = Exchanges()
        self.upstream = VllmUpstream(list(self._servers.apis.values()), self.exchanges)
        channels = {node_id: self._servers.channel(node_id) for node_id in self._servers.apis}
        super().__init__(
            _with_nodes(config, self._servers.roles), channels, progress, runtime, has_gateways=has_gateways
        )

    @property
    def _start_s(self) -> float:
        return self._config.vllm.start_s

    def _link_config(self, config: ServeConfig) -> LinkConfig:
        return replace(super()._link_config(config), heartbeat_s=config.vllm.heartbeat_s)

    async def start(self) -> None:
        self._servers.start()
        await super().start()
        self._servers.watch()

    async def _start_link(self, link: NodeLink) -> None:
        """Until node and server are both there; a server that ends meanwhile ends the start."""
        waits = [
            asyncio.create_task(self._until_ready(link)),
            asyncio.create_task(self._servers.until_ended(link.node_id)),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        next(task for task in reversed(waits) if not task.cancelled()).result()

    async def _until_ready(self, link: NodeLink) -> None:
        await super()._start_link(link)
        (info,), api, role = link.report.engines, self._servers.apis[link.node_id], self._servers.roles[link.node_id]
        if info.role is not role:
            raise ConfigError(f"--vllm-join: {api.url} has a {info.role.value} connector, not a {role.value} one")
        while not await api.is_up():  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        self._progress(f"{link.node_id} serves at {api.url}")

    def _add_engine(self, link: NodeLink, info: EngineInfo) -> None:
        if info.engine_id in [engine.info.engine_id for engine in (*self._prefill, *self._decode)]:
            raise ConfigError(f"--vllm-join: two servers are called {info.engine_id}: dualpath vllm config --name ...")
        server = self._servers.apis[link.node_id]
        add_engine(link, info, server, self.exchanges, self._prefill, self._decode)

    def _scheduler_config(self, reports: Mapping[NodeId, NodeReport]) -> SchedulerConfig:
        config, first = self._config, next(iter(reports.values()))
        rates = self._nic_rates()
        finder = LimitsFinder(
            config,
            self.system,
            first.namespace.geometry,
            min(report.max_context_tokens for report in reports.values()),
            min(rates.values(), default=None),
            self._runtime,
            self._progress,
        )
        return replace(finder.unprofiled(), nic_bytes_per_s=rates)

    async def _close_nodes(self) -> None:
        try:
            await super()._close_nodes()
            for server in self._servers.apis.values():
                await server.close()
        finally:
            await self._servers.close()


def _own_servers(config: ServeConfig, progress: Progress) -> Servers:
    if config.vllm.join:
        return JoinedServers(config)
    return StartedServers(config, new_places(config), progress)


def _with_nodes(config: ServeConfig, roles: Mapping[NodeId, Role]) -> ServeConfig:
    """The same with a node for each server, as ``RemoteCluster`` knows them, where the configuration names none."""
    if config.nodes:
        return config
    mbps = config.cluster.storage_nic_mbps
    nodes = tuple(NodeConfig(name=name, role=role.value, storage_nic_mbps=mbps) for name, role in roles.items())
    return replace(config, cluster=replace(config.cluster, prefill=1, decode=1), nodes=nodes)

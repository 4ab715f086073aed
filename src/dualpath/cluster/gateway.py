"""A gateway beside others: a link to every node, one to the scheduler's desk, and a service over them.

Its requests' tokens come from the engines to it. When it dies its own streams break and no others.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping

import msgspec

from dualpath.cluster.describe import cluster_facts, node_stats
from dualpath.cluster.setup import Progress
from dualpath.config import ServeConfig
from dualpath.core.errors import EngineLostError
from dualpath.core.ids import NodeId
from dualpath.core.plan import Role
from dualpath.core.runtime import Runtime
from dualpath.core.starts_whole import StartsWhole
from dualpath.core.stats import NodeStats
from dualpath.protocol.api import DecodeEngineClient, EngineInfo, PrefillEngineClient
from dualpath.protocol.channel import Channel
from dualpath.protocol.client import RemoteDecodeEngine, RemotePrefillEngine
from dualpath.protocol.node_link import LinkConfig, NodeLink
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.desk.remote import RemoteDesk
from dualpath.scheduler.desk.shared_control import SharedControl
from dualpath.scheduler.service import Service

log = logging.getLogger(__name__)


class GatewayCluster(StartsWhole):
    """``service`` serves requests in between. Event loop only."""

    def __init__(
        self,
        name: str,
        config: ServeConfig,
        channels: Mapping[NodeId, Channel],
        desk: Channel,
        progress: Progress,
        runtime: Runtime,
    ) -> None:
        """``name``: this gateway's, as it will be called after a restart, too. ``desk``: leads to the scheduler."""
        self._settings, self._runtime, self._progress = config, runtime, progress
        self._caller = f"{name}.{runtime.unique_id()[:8]}"
        self._scope = f"{self._caller}/"  # before its requests' ids, where engines know them
        # What ended a node's process, and when it may be said to have ended, is the scheduler's to tell.
        self._config = LinkConfig(heartbeat_s=config.ray.heartbeat_s, kill_silent_s=math.inf, lease_s=math.inf)
        self._desk_link = self._link(NodeId("scheduler"), desk, self._config)
        self._channels = channels
        self._links: list[NodeLink] = []
        self._prefill: list[PrefillEngineClient] = []
        self._decode: list[DecodeEngineClient] = []
        self._desk: RemoteDesk | None = None
        self._service: Service | None = None

    @property
    def service(self) -> Service:
        assert self._service is not None, "the gateway has not been started"
        return self._service

    async def _start(self) -> None:
        """Return when the scheduler and every node have been reached."""
        await self._desk_link.start()
        report = self._desk_link.report
        config = msgspec.msgpack.decode(report.limits, type=SchedulerConfig)
        desk = self._desk = RemoteDesk(self._desk_link, config, self._runtime)
        await desk.start()
        self._links = [self._link_to_node(node_id, channel) for node_id, channel in self._channels.items()]
        await asyncio.gather(*(link.start() for link in self._links))
        for link in self._links:
            for info in link.report.engines:
                self._add_engine(link, info)
        self._service = Service(
            desk,
            prefill_engines=self._prefill,
            decode_engines=self._decode,
            namespace=report.namespace,
            model_name=report.model_name,
            max_context_tokens=report.max_context_tokens,
            config=config,
            runtime=self._runtime,
            describe_nodes=self._describe_nodes,
            facts=cluster_facts(self._settings, report.namespace.geometry, config, self._prefill, self._decode),
            scope=self._scope,
            control=SharedControl,
        )
        self._service.open()

    def _add_engine(self, link: NodeLink, info: EngineInfo) -> None:
        if info.role is Role.PREFILL:
            self._prefill.append(RemotePrefillEngine(link, info.engine_id))
        else:
            self._decode.append(RemoteDecodeEngine(link, info.engine_id))

    async def close(self, drain_s: float) -> None:
        if self._service is not None:
            await self._service.close(drain_s)
        if self._desk is not None:
            await self._desk.close()
        for link in (*self._links, self._desk_link):
            await link.close()

    def _describe_nodes(self) -> tuple[NodeStats, ...]:
        configs = {node.name: node for node in self._settings.nodes}
        return tuple(node_stats(self._settings, configs[link.node_id], link) for link in self._links)

    def _link_to_node(self, node_id: NodeId, channel: Channel) -> NodeLink:
        return self._link(node_id, channel, self._config)

    def _link(self, node_id: NodeId, channel: Channel, config: LinkConfig) -> NodeLink:
        return NodeLink(
            node_id,
            channel,
            config,
            self._on_down,
            self._progress,
            self._runtime,
            caller=self._caller,
            knows=lambda report: self._desk is not None and self._desk.knows(report),
        )

    def _on_down(self, link: NodeLink, _: EngineLostError) -> None:
        """What runs there goes on elsewhere: its calls have ended with the link."""
        if self._desk is not None:
            for info in link.report.engines:
                self._desk.on_engine_lost(info.engine_id)

"""A cluster whose nodes are processes of their own: one link each, and the same scheduler over remote engines."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
from collections.abc import Mapping

import msgspec

from dualpath.cluster.composition import Nodes, ServingCluster
from dualpath.cluster.describe import node_stats
from dualpath.cluster.setup import Progress
from dualpath.config import ServeConfig
from dualpath.core.errors import ConfigError, DualPathError, EngineLostError
from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.plan import Role
from dualpath.core.runtime import Runtime
from dualpath.core.stats import NodeStats
from dualpath.protocol import wire
from dualpath.protocol.api import NODE, DecodeEngineClient, EngineInfo, NodeCalls, PrefillEngineClient
from dualpath.protocol.channel import Channel
from dualpath.protocol.client import RemoteDecodeEngine, RemotePrefillEngine, stub
from dualpath.protocol.node_link import LinkConfig, NodeLink
from dualpath.protocol.wire import NodeReport
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.desk.server import DeskServer
from dualpath.store.open import open_store

_RemoteNode = stub(NodeCalls)


class RemoteCluster(ServingCluster):
    """``channels`` lead to the processes of ``config.nodes``, by name. It ends no process: ``ray`` does."""

    def __init__(
        self,
        config: ServeConfig,
        channels: Mapping[NodeId, Channel],
        progress: Progress,
        runtime: Runtime | None = None,
        *,
        has_gateways: bool = False,
    ) -> None:
        """``has_gateways``: gateways in processes of their own have seats at this one's desk (``desk_server``)."""
        super().__init__(config, progress, runtime)
        self._has_gateways = has_gateways
        link_config = self._link_config(config)
        self._engine_nodes = [node for node in config.nodes if node.role != "gateway"]
        self.links = {
            NodeId(node.name): NodeLink(
                NodeId(node.name), channels[NodeId(node.name)], link_config, self._on_down, progress, self._runtime
            )
            for node in self._engine_nodes
        }
        self._prefill: list[PrefillEngineClient] = []
        self._decode: list[DecodeEngineClient] = []

    @property
    def _start_s(self) -> float:
        return self._config.ray.start_s

    def _link_config(self, config: ServeConfig) -> LinkConfig:
        ray = config.ray
        return LinkConfig(heartbeat_s=ray.heartbeat_s, kill_silent_s=ray.kill_silent_s, lease_s=ray.lease_s)

    async def _start_nodes(self) -> Nodes:
        starting = [asyncio.create_task(self._start_link(link)) for link in self.links.values()]
        try:
            async with asyncio.timeout(self._start_s):
                await asyncio.gather(*starting)
        except TimeoutError:
            late = ", ".join(node_id for node_id, link in self.links.items() if not link.is_up)
            raise DualPathError(f"not ready within {self._start_s:g} s: {late}") from None
        finally:
            for task in starting:
                task.cancel()
        reports = {node_id: link.report for node_id, link in self.links.items()}
        first = _agreed(reports)
        for link in self.links.values():
            for info in link.report.engines:
                self._add_engine(link, info)
        namespace = first.namespace
        return Nodes(
            self._prefill,
            self._decode,
            namespace,
            await self._runtime.to_thread(open_store, self._config.store.url, namespace, namespace.geometry),
            first.model_name,
            min(report.max_context_tokens for report in reports.values()),
            self._scheduler_config(reports),
        )

    def _add_engine(self, link: NodeLink, info: EngineInfo) -> None:
        if info.role is Role.PREFILL:
            self._prefill.append(RemotePrefillEngine(link, info.engine_id))
        else:
            self._decode.append(RemoteDecodeEngine(link, info.engine_id))

    async def _start_link(self, link: NodeLink) -> None:
        await link.start()
        report = link.report
        self._progress(f"node {link.node_id} ready on {report.host}, process {report.pid}")

    async def _close_nodes(self) -> None:
        for link in self.links.values():
            await link.close()
        if self._nodes is not None:
            self._nodes.store.close()

    def _node_calls(self) -> Mapping[NodeId, NodeCalls]:
        return {node_id: _RemoteNode(link, NODE) for node_id, link in self.links.items()}

    async def _start(self) -> None:
        await super()._start()
        if not self._has_gateways:
            for caller in self._callers():
                self.desk.vacate(caller, self.desk.seat())

    def _former_gateways(self) -> list[str]:
        return self._callers() if self._has_gateways else []

    def _callers(self) -> list[str]:
        """Gateways that nodes knew of when this scheduler came."""
        return sorted({caller for link in self.links.values() for caller in link.callers})

    def desk_server(self, lease_s: float) -> DeskServer:
        """What gateways' links lead to. ``lease_s``: one that is not heard for so long is given up."""
        nodes = self.nodes
        host, pid = socket.gethostname(), os.getpid()
        limits = wire.encode(nodes.scheduler)
        report = NodeReport(nodes.namespace, nodes.model_name, nodes.max_context_tokens, (), limits, host, pid)
        return DeskServer(self.desk, report, self._runtime, lease_s)

    def _held(self) -> list[tuple[EngineId, RequestId]]:
        return [held for link in self.links.values() for held in link.held]

    def _on_down(self, link: NodeLink, error: EngineLostError) -> None:
        if self._scheduler is not None:
            for info in link.report.engines:
                self.desk.mark_lost(info.engine_id, error)

    def _scheduler_config(self, reports: Mapping[NodeId, NodeReport]) -> SchedulerConfig:
        """A prefill node's, from its profile; every node's NIC has its own rate if that is configured.

        alpha is one number for all nodes: that of the slowest.
        """
        prefill = [node.name for node in self._engine_nodes if node.role == "prefill"]
        found = [msgspec.msgpack.decode(reports[NodeId(name)].limits, type=SchedulerConfig) for name in prefill]
        slowest = min(found, key=lambda config: config.alpha_tokens)
        return dataclasses.replace(slowest, nic_bytes_per_s=self._nic_rates())

    def _nic_rates(self) -> dict[NodeId, float]:
        """In bytes per second, as far as they are known."""
        known = {NodeId(node.name): self._config.storage_nic_bytes_per_s(node) for node in self._engine_nodes}
        return {node_id: rate for node_id, rate in known.items() if rate is not None}

    def _describe_nodes(self) -> tuple[NodeStats, ...]:
        return tuple(node_stats(self._config, node, self.links[NodeId(node.name)]) for node in self._engine_nodes)


def _agreed(reports: Mapping[NodeId, NodeReport]) -> NodeReport:
    """Any node's report. Raises ConfigError where nodes do not have the same model, or do not verify the same."""
    (first_id, first), *others = reports.items()
    for node_id, report in others:
        if report.namespace != first.namespace:
            raise ConfigError(
                f"[[nodes]] {node_id} and {first_id} differ in model, number format, block size or kind of device: "
                f"{report.namespace} and {first.namespace}"
            )
        if report.engines[0].verifies != first.engines[0].verifies:
            raise ConfigError(f"[memory] verify: {node_id} and {first_id} differ; it must be the same on every node")
    return first

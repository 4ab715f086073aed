"""A cluster whose nodes are processes of their own: one link each, and the same scheduler over remote engines."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping

import msgspec

from dualpath.config import NodeConfig, ServeConfig
from dualpath.core.errors import ConfigError, DualPathError, EngineLostError
from dualpath.core.ids import NodeId
from dualpath.core.plan import Role
from dualpath.core.runtime import Runtime
from dualpath.core.stats import NodeStats
from dualpath.engine.remote.channel import Channel
from dualpath.engine.remote.client import RemoteDecodeEngine, RemotePrefillEngine
from dualpath.engine.remote.link import LinkConfig, NodeLink
from dualpath.engine.remote.wire import NodeReport
from dualpath.launch.composition import Cluster, Nodes
from dualpath.launch.setup import Progress
from dualpath.scheduler.config import SchedulerConfig
from dualpath.store.open import open_store


class RemoteCluster(Cluster):
    """``channels`` lead to the processes of ``config.nodes``, by name. It ends no process: ``launch.ray`` does."""

    def __init__(
        self,
        config: ServeConfig,
        channels: Mapping[NodeId, Channel],
        progress: Progress,
        runtime: Runtime | None = None,
    ) -> None:
        super().__init__(config, progress, runtime)
        ray = config.ray
        link_config = LinkConfig(heartbeat_s=ray.heartbeat_s, kill_silent_s=ray.kill_silent_s, lease_s=ray.lease_s)
        self._engine_nodes = [node for node in config.nodes if node.role != "gateway"]
        self.links = {
            NodeId(node.name): NodeLink(
                NodeId(node.name), channels[NodeId(node.name)], link_config, self._on_down, progress, self._runtime
            )
            for node in self._engine_nodes
        }
        self._prefill: list[RemotePrefillEngine] = []
        self._decode: list[RemoteDecodeEngine] = []

    async def _start(self) -> None:
        await super()._start()
        self.service.adopt([held for link in self.links.values() for held in link.held])

    async def _start_nodes(self) -> Nodes:
        starting = [asyncio.create_task(self._start_link(link)) for link in self.links.values()]
        try:
            async with asyncio.timeout(self._config.ray.start_s):
                await asyncio.gather(*starting)
        except TimeoutError:
            late = ", ".join(node_id for node_id, link in self.links.items() if not link.is_up)
            raise DualPathError(f"not ready within {self._config.ray.start_s:g} s: {late}") from None
        finally:
            for task in starting:
                task.cancel()
        reports = {node_id: link.report for node_id, link in self.links.items()}
        first = _agreed(reports)
        for link in self.links.values():
            for info in link.report.engines:
                if info.role is Role.PREFILL:
                    self._prefill.append(RemotePrefillEngine(link, info.engine_id))
                else:
                    self._decode.append(RemoteDecodeEngine(link, info.engine_id))
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

    async def _start_link(self, link: NodeLink) -> None:
        await link.start()
        report = link.report
        self._progress(f"node {link.node_id} ready on {report.host}, process {report.pid}")

    async def _close_nodes(self) -> None:
        for link in self.links.values():
            await link.close()
        if self._nodes is not None:
            self._nodes.store.close()

    def _on_down(self, link: NodeLink, error: EngineLostError) -> None:
        if self._service is not None:
            for info in link.report.engines:
                self._service.mark_lost(info.engine_id, error)

    def _scheduler_config(self, reports: Mapping[NodeId, NodeReport]) -> SchedulerConfig:
        """A prefill node's, from its profile; every node's NIC has its own rate if that is configured.

        alpha is one number for all nodes: that of the slowest.
        """
        prefill = [node.name for node in self._engine_nodes if node.role == "prefill"]
        found = [msgspec.msgpack.decode(reports[NodeId(name)].limits, type=SchedulerConfig) for name in prefill]
        slowest = min(found, key=lambda config: config.alpha_tokens)
        rates = {NodeId(n.name): n.storage_nic_mbps * 1e6 / 8 for n in self._engine_nodes if n.storage_nic_mbps}
        return dataclasses.replace(slowest, nic_bytes_per_s=rates)

    def _describe_nodes(self) -> tuple[NodeStats, ...]:
        return tuple(_describe(node, self.links[NodeId(node.name)]) for node in self._engine_nodes)


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


def _describe(node: NodeConfig, link: NodeLink) -> NodeStats:
    report = link.report
    return NodeStats(
        link.node_id,
        Role(node.role),
        tuple(info.engine_id for info in report.engines),
        host=report.host,
        pid=report.pid,
        is_up=link.is_up,
        silent_s=round(link.silent_s, 3),
        num_messages=link.num_batches,
        storage_nic=node.storage_nic,
        storage_nic_bytes_per_s=_bytes_per_s(node.storage_nic_mbps),
        compute_nic=",".join(node.rdma_devices or node.compute_nics) or None,
        compute_nic_bytes_per_s=_bytes_per_s(node.compute_nic_mbps),
    )


def _bytes_per_s(mbps: float | None) -> float | None:
    return None if mbps is None else mbps * 1e6 / 8

"""A cluster whose nodes are processes of their own: one link each, and the same scheduler over remote engines."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence

import msgspec

from dualpath.config import NodeConfig, ServeConfig
from dualpath.core.errors import ConfigError, DualPathError, EngineLostError
from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.plan import Role
from dualpath.core.stats import NodeStats
from dualpath.engine.remote.channel import Channel
from dualpath.engine.remote.client import RemoteDecodeEngine, RemotePrefillEngine
from dualpath.engine.remote.link import LinkConfig, NodeLink
from dualpath.engine.remote.wire import NodeReport
from dualpath.launch.composition import Cluster, Nodes
from dualpath.launch.setup import Progress
from dualpath.scheduler.config import SchedulerConfig
from dualpath.store.open import open_store

_RELEASE_PAUSE_S = 0.2
_ORPHANS_DEADLINE_S = 120.0


class RemoteCluster(Cluster):
    """``channels`` lead to the processes of ``config.nodes``, by name. It ends no process: ``launch.ray`` does."""

    def __init__(self, config: ServeConfig, channels: Mapping[NodeId, Channel], progress: Progress) -> None:
        super().__init__(config, progress)
        ray = config.ray
        link_config = LinkConfig(heartbeat_s=ray.heartbeat_s, kill_silent_s=ray.kill_silent_s, lease_s=ray.lease_s)
        self._engine_nodes = [node for node in config.nodes if node.role != "gateway"]
        self.links = {
            NodeId(node.name): NodeLink(
                NodeId(node.name), channels[NodeId(node.name)], link_config, self._on_down, progress
            )
            for node in self._engine_nodes
        }
        self._prefill: list[RemotePrefillEngine] = []
        self._decode: list[RemoteDecodeEngine] = []

    async def _start_nodes(self) -> Nodes:
        try:
            async with asyncio.timeout(self._config.ray.start_s), asyncio.TaskGroup() as group:
                for link in self.links.values():
                    group.create_task(self._start_link(link))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        except TimeoutError:
            late = ", ".join(node_id for node_id, link in self.links.items() if not link.is_up)
            raise DualPathError(f"not ready within {self._config.ray.start_s:g} s: {late}") from None
        reports = {node_id: link.report for node_id, link in self.links.items()}
        first = _agreed(reports)
        for link in self.links.values():
            for info in link.report.engines:
                if info.role is Role.PREFILL:
                    self._prefill.append(RemotePrefillEngine(link, info.engine_id))
                else:
                    self._decode.append(RemoteDecodeEngine(link, info.engine_id))
        await self._release_orphans()
        namespace = first.namespace
        return Nodes(
            self._prefill,
            self._decode,
            namespace,
            await asyncio.to_thread(open_store, self._config.store.url, namespace, namespace.geometry),
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

    async def _release_orphans(self) -> None:
        """What requests of a former scheduler still hold is given back, prefill side first, as in their own time."""
        held = {role: [orphan for link in self.links.values() for orphan in _held(link, role)] for role in Role}
        prefill = {engine.info.engine_id: engine for engine in self._prefill}
        decode = {engine.info.engine_id: engine for engine in self._decode}
        async with asyncio.timeout(_ORPHANS_DEADLINE_S):
            for engine_id, request_id in held[Role.PREFILL]:
                while not await prefill[engine_id].release(request_id):  # noqa: ASYNC110  (the engine has no event for it)
                    await asyncio.sleep(_RELEASE_PAUSE_S)
            for engine_id, request_id in held[Role.DECODE]:
                await decode[engine_id].release(request_id)

    def _describe_nodes(self) -> tuple[NodeStats, ...]:
        return tuple(_describe(node, self.links[NodeId(node.name)]) for node in self._engine_nodes)


def _held(link: NodeLink, role: Role) -> Sequence[tuple[EngineId, RequestId]]:
    roles = {info.engine_id: info.role for info in link.report.engines}
    return [(engine_id, request_id) for engine_id, request_id in link.held if roles[engine_id] is role]


def _agreed(reports: Mapping[NodeId, NodeReport]) -> NodeReport:
    """Any node's report. Raises ConfigError where nodes do not have the same model."""
    (first_id, first), *others = reports.items()
    for node_id, report in others:
        if report.namespace != first.namespace:
            raise ConfigError(
                f"[[nodes]] {node_id} and {first_id} differ in model, number format, block size or kind of device: "
                f"{report.namespace} and {first.namespace}"
            )
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

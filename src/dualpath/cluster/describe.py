"""What statistics say of a cluster's nodes, and of what its scheduler and engines go by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dualpath.config import NodeConfig, ServeConfig, bytes_per_s
from dualpath.core.geometry import KvGeometry
from dualpath.core.plan import Role
from dualpath.core.stats import ClusterFacts, NodeStats
from dualpath.protocol.api import DecodeEngineClient, PrefillEngineClient
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.policy.systems import system_policy
from dualpath.store.header import object_bytes

if TYPE_CHECKING:
    from dualpath.protocol.node_link import NodeLink  # msgspec only where nodes are elsewhere


def cluster_facts(
    config: ServeConfig,
    geometry: KvGeometry,
    limits: SchedulerConfig,
    prefill_engines: Sequence[PrefillEngineClient],
    decode_engines: Sequence[DecodeEngineClient],
) -> ClusterFacts:
    """``limits``: the scheduler's."""
    return ClusterFacts(
        system=system_policy(config.cluster.system, config.cluster.path).name,
        num_layers=geometry.num_layers,
        object_bytes=object_bytes(geometry),
        alpha_tokens=limits.alpha_tokens,
        beta_tokens=limits.beta_tokens,
        expected_output_tokens=limits.expected_output_tokens,
        quota_s=config.scheduler.prefill_quota_ms / 1e3,
        max_batch_tokens=config.memory.prefill_batch_tokens,
        prefill_kv_tokens=min(engine.info.device_kv_tokens for engine in prefill_engines),
        decode_kv_tokens=min(engine.info.device_kv_tokens for engine in decode_engines),
    )


def node_stats(config: ServeConfig, node: NodeConfig, link: NodeLink) -> NodeStats:
    """A node as whoever has the link sees it."""
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
        storage_nic_bytes_per_s=config.storage_nic_bytes_per_s(node),
        compute_nic=",".join(node.rdma_devices or node.compute_nics) or None,
        compute_nic_bytes_per_s=bytes_per_s(node.compute_nic_mbps),
    )

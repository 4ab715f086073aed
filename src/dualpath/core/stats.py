"""Snapshots of what engines and the cluster have done and hold: plain numbers for metrics, status and reports."""

from __future__ import annotations

from dataclasses import dataclass, field

from dualpath.core.ids import EngineId, NodeId
from dualpath.core.plan import Role


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters only grow; gauges are the state at the moment of the snapshot."""

    engine_id: EngineId
    node_id: NodeId
    role: Role
    # counters
    storage_read_bytes: int = 0
    storage_write_bytes: int = 0
    kv_transfer_bytes: dict[str, int] = field(default_factory=dict)  # Direction value -> bytes, counted where initiated
    local_copy_bytes: int = 0
    blocks_missing: int = 0
    blocks_corrupt: int = 0
    blocks_failed: int = 0  # storage reads that failed or passed their deadline
    blocks_not_persisted: int = 0  # storage writes that failed; serving went on
    num_forwards: int = 0
    # gauges
    num_requests: int = 0
    read_queue_tokens: int = 0
    staging_slots: int = 0
    staging_slots_used: int = 0
    device_kv_bytes: int = 0  # allocated once
    device_kv_used_bytes: int = 0
    device_kv_peak_bytes: int = 0  # most ever in use


@dataclass(frozen=True, slots=True)
class ClusterStats:
    engines: tuple[EngineStats, ...]
    num_queued_requests: int = 0
    num_running_requests: int = 0
    index_blocks: int = 0

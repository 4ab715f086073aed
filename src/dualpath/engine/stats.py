"""An engine's snapshot: its traffic manager's counters and its own gauges in one record."""

from __future__ import annotations

from dualpath.core.ids import EngineId, NodeId
from dualpath.core.plan import Role
from dualpath.core.stats import EngineStats
from dualpath.traffic.manager import TrafficManager


def engine_stats(
    engine_id: EngineId,
    node_id: NodeId,
    role: Role,
    traffic: TrafficManager,
    *,
    num_requests: int,
    num_forwards: int,
    device_kv_bytes: int,
    device_kv_used_bytes: int,
    device_kv_peak_bytes: int,
) -> EngineStats:
    moved = traffic.stats()
    return EngineStats(
        engine_id=engine_id,
        node_id=node_id,
        role=role,
        storage_read_bytes=moved.storage_read_bytes,
        storage_write_bytes=moved.storage_write_bytes,
        nic_read_bytes=moved.nic_read_bytes,
        kv_transfer_bytes=dict(moved.kv_transfer_bytes),
        local_copy_bytes=moved.local_copy_bytes,
        blocks_missing=moved.blocks_missing,
        blocks_corrupt=moved.blocks_corrupt,
        blocks_failed=moved.blocks_failed,
        blocks_not_persisted=moved.blocks_not_persisted,
        kv_corrupt=moved.kv_corrupt,
        num_forwards=num_forwards,
        num_requests=num_requests,
        read_queue_tokens=moved.read_queue_tokens,
        staging_slots=traffic.slots.num_slots,
        staging_slots_used=traffic.slots.num_used,
        transfers_lingering=moved.num_lingering,
        broken_peers=moved.broken_peers,
        storage_stalled_s=moved.storage_stalled_s,
        device_kv_bytes=device_kv_bytes,
        device_kv_used_bytes=device_kv_used_bytes,
        device_kv_peak_bytes=device_kv_peak_bytes,
    )

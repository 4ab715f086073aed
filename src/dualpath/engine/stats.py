"""What an engine has done and holds: its traffic manager's counters, its slots, and numbers of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dualpath.core.latency import NOTHING_COUNTED
from dualpath.core.stats import EngineStats
from dualpath.traffic.manager import TrafficManager


def engine_stats(traffic: TrafficManager, **own: Any) -> EngineStats:
    """``own``: those fields of the snapshot that the traffic manager does not know."""
    moved, slots = traffic.stats(), traffic.slots
    return EngineStats(
        engine_id=traffic.engine_id,
        node_id=traffic.node_id,
        role=traffic.role,
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
        storage_read_latency=moved.storage_read_latency,
        storage_write_latency=moved.storage_write_latency,
        read_queue_tokens=moved.read_queue_tokens,
        staging_slots=slots.num_slots,
        staging_slots_used=slots.num_used,
        staging_slots_aside=slots.num_aside,
        transfers_lingering=moved.num_lingering,
        peers=moved.peers,
        broken_peers=moved.broken_peers,
        storage_stalled_s=moved.storage_stalled_s,
        **own,
    )


def of_ranks(stats: Sequence[EngineStats]) -> EngineStats:
    """One engine's, of those of its ranks: bytes and memory together; what is the same in each, or waits, once."""
    total = {name: sum(getattr(one, name) for one in stats) for name in _SUMS}
    largest = {name: max(getattr(one, name) for one in stats) for name in _LARGEST}
    moved: Counter[str] = Counter()
    for one in stats:
        moved.update(one.kv_transfer_bytes)
    return replace(
        stats[0],
        **total,
        **largest,
        kv_transfer_bytes=dict(moved),
        storage_read_latency=sum((one.storage_read_latency for one in stats), NOTHING_COUNTED),
        storage_write_latency=sum((one.storage_write_latency for one in stats), NOTHING_COUNTED),
        peers=tuple(dict.fromkeys(peer for one in stats for peer in one.peers)),
        broken_peers=tuple(dict.fromkeys(peer for one in stats for peer in one.broken_peers)),
    )


_SUMS = (
    *("storage_read_bytes", "storage_write_bytes", "nic_read_bytes", "local_copy_bytes"),
    *("blocks_missing", "blocks_corrupt", "blocks_failed", "blocks_not_persisted", "kv_corrupt"),
    *("transfers_lingering", "device_kv_bytes", "device_kv_used_bytes", "device_kv_peak_bytes"),
)
_LARGEST = ("read_queue_tokens", "staging_slots_used", "staging_slots_aside", "storage_stalled_s")


class Stalls:
    """How long forwards took, and how long of it their compute stood still, by layer. The model thread adds."""

    def __init__(self, num_layers: int) -> None:
        self._per_layer_s = [0.0] * num_layers
        self._push_s = self._forward_s = 0.0

    def add(self, per_layer_s: Sequence[float], push_s: float, forward_s: float) -> None:
        for layer, stall_s in enumerate(per_layer_s):
            self._per_layer_s[layer] += stall_s
        self._push_s += push_s
        self._forward_s += forward_s

    def counts(self) -> dict[str, Any]:
        """Fields of the engine's snapshot."""
        return {
            "prefill_stall_s": tuple(self._per_layer_s),
            "prefill_push_s": self._push_s,
            "prefill_forward_s": self._forward_s,
        }

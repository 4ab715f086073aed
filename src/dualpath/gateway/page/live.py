"""What the live page gets each second: the cluster, what flows now, its panels, recent requests, the verdict."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dualpath.core.errors import DualPathError
from dualpath.core.plan import Direction
from dualpath.core.request import RecordQuery
from dualpath.core.stats import ClusterStats
from dualpath.gateway.backend import Backend
from dualpath.gateway.page.minute_replay import MinuteReplay
from dualpath.gateway.page.panels import Panels, between, queues_s
from dualpath.gateway.sse import sse
from dualpath.gateway.verdict.change import Change, ClusterLook, transferred_bytes
from dualpath.gateway.verdict.judge import judge

WINDOW = 11  # looks, a second apart, that the verdict spans
_LOOK_TIMEOUT_S = 10.0
_RECENT, _SHOWN = 1000, 40  # requests that are judged, that are shown

# What the page reads: events are sent to many, and an engine's counts of latencies alone are longer than all of these.
_OF_CLUSTER = ("num_queued_requests", "num_running_requests", "index_blocks", "nodes", "store", "requests_in_phase")
_OF_ENGINES = (
    *("engine_id", "node_id", "role", "num_requests", "read_queue_tokens", "staging_slots", "staging_slots_used"),
    *("staging_slots_aside", "device_kv_bytes", "device_kv_used_bytes", "transfers_lingering"),
    *("blocks_missing", "blocks_corrupt", "kv_corrupt", "blocks_failed", "blocks_not_persisted"),
)
_OF_REQUESTS = (
    *("request_id", "outcome", "error", "path", "ttft_s", "phases_s"),
    *("num_prompt_tokens", "num_hit_tokens", "num_generated_tokens"),
)


class LiveView:
    """Keeps the looks of the last seconds."""

    def __init__(self, backend: Backend, replay: MinuteReplay) -> None:
        self._backend = backend
        self._replay = replay
        self._looks: deque[ClusterLook] = deque(maxlen=WINDOW)

    async def event(self) -> bytes:
        """A server-sent event; where the cluster does not answer it says that."""
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT_S):
                found = await self._backend.control.records(RecordQuery(_RECENT))
                stats = await self._backend.stats()
        except (DualPathError, TimeoutError) as error:
            self._looks.clear()
            return sse({"error": str(error) or "the cluster does not answer"})
        now_s = asyncio.get_running_loop().time()
        if self._looks and now_s - self._looks[-1].taken_s > 2 * WINDOW:
            self._looks.clear()  # nobody has watched since
        # Records of running requests change: what is kept must not.
        records = [replace(r) if r.total_s is None else r for r in found.records]
        look = ClusterLook.of(now_s, stats, replace(found, records=records))
        self._looks.append(look)
        return sse(
            {
                "taken_s": now_s,
                "model": self._backend.model_name,
                "problems": (*self._backend.problems(), *found.lack()),
                "stats": _shown(look.stats),
                "flows": self._flows(),
                "queues_s": queues_s(stats),
                "panels": self._panels(),
                "requests": [_named(record, _OF_REQUESTS) for record in records[:_SHOWN]],
                "verdict": judge(self._looks[0], self._looks[-1]),
                "replay": self._replay.state(),
            }
        )

    def _panels(self) -> Panels | None:
        """Over all looks; None before there are two."""
        first, last = self._looks[0], self._looks[-1]
        return between(first, last) if last.taken_s > first.taken_s else None

    def _flows(self) -> dict[str, dict[str, float]]:
        """Bytes per second by node, since the look before."""
        if len(self._looks) < 2 or self._looks[-1].taken_s <= self._looks[-2].taken_s:
            return {}
        change = Change(self._looks[-2].without_records(), self._looks[-1].without_records())
        return {node_id: self._flows_of(change, node_id) for node_id in {e.node_id for e in change.stats.engines}}

    def _flows_of(self, change: Change, node_id: Any) -> dict[str, float]:
        flows = {
            "storage_read": change.nic_read_bytes_per_s(node_id),
            "storage_write": change.bytes_per_s(lambda engine: engine.storage_write_bytes, node_id),
        }
        for direction in Direction:
            flows[direction.value] = change.bytes_per_s(transferred_bytes(direction.value), node_id)
        return flows


def _shown(stats: ClusterStats) -> dict[str, Any]:
    return _named(stats, _OF_CLUSTER) | {"engines": [_named(engine, _OF_ENGINES) for engine in stats.engines]}


def _named(of: object, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(of, name) for name in names}

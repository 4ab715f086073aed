"""The numbers behind the page's panels, between two looks: first tokens by phase, paths, sources, stalls, latencies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dualpath.core.latency import BOUNDS_S, LatencyCounts
from dualpath.core.phase import BEFORE_FIRST_TOKEN
from dualpath.core.plan import Direction, Role
from dualpath.core.request import RequestRecord
from dualpath.core.stats import ClusterStats, EngineStats
from dualpath.gateway.metrics import tokens_by_source
from dualpath.gateway.verdict.change import Change, ClusterLook, transferred_bytes

Counts = Callable[[EngineStats], int]
TROUBLES: dict[str, Counts] = {
    "missing blocks": lambda e: e.blocks_missing,
    "corrupt on storage": lambda e: e.blocks_corrupt,
    "corrupt on the way": lambda e: e.kv_corrupt,
    "reads failed": lambda e: e.blocks_failed,
    "not written": lambda e: e.blocks_not_persisted,
}


@dataclass(frozen=True, slots=True)
class BlockLatency:
    """Of one block; percentiles are upper bounds of the buckets they lie in. None: nothing moved."""

    num: int
    p50_s: float | None
    p99_s: float | None


@dataclass(frozen=True, slots=True)
class Panels:
    """Over ``interval_s``; rates in bytes per second. Shares of stalls: of forward time, by layer."""

    interval_s: float
    num_first_tokens: int
    ttft_s: float | None  # mean
    ttft_phases_s: dict[str, float]  # mean request
    paths: dict[str, int]  # requests by ReadPlan.path
    tokens_by_source: dict[str, int]
    read_bytes_per_s: dict[str, float]  # by side
    written_bytes_per_s: dict[str, float]
    transferred_bytes_per_s: dict[str, float]  # by direction
    stall_shares: list[float]
    push_share: float  # waiting for the last new rows to leave
    forward_s: float  # of all prefill engines
    reading: BlockLatency
    writing: BlockLatency
    troubles: dict[str, int]
    num_retries: int


def between(before: ClusterLook, after: ClusterLook) -> Panels:
    """``after`` must be later. Engines that were started again meanwhile do not count."""
    change = Change(before.without_records(), after.without_records())
    fresh = _first_tokens(before.records or (), after.records or ())
    pairs = change.pairs
    forward_s = sum(new.prefill_forward_s - old.prefill_forward_s for old, new in pairs)
    push_s = sum(new.prefill_push_s - old.prefill_push_s for old, new in pairs)
    return Panels(
        interval_s=round(change.interval_s, 3),
        num_first_tokens=len(fresh),
        ttft_s=_mean(record.ttft_s or 0.0 for record in fresh) if fresh else None,
        ttft_phases_s={
            phase.value: _mean(r.phases_s.get(phase.value, 0.0) for r in fresh) for phase in BEFORE_FIRST_TOKEN if fresh
        },
        paths=dict(Counter(record.path for record in fresh)),
        tokens_by_source=dict(sum((Counter(tokens_by_source(record)) for record in fresh), Counter())),
        read_bytes_per_s=_by_side(change, lambda e: e.storage_read_bytes),
        written_bytes_per_s=_by_side(change, lambda e: e.storage_write_bytes),
        transferred_bytes_per_s={
            d.value: change.grown(transferred_bytes(d.value)) / change.interval_s for d in Direction
        },
        stall_shares=[round(stall_s / forward_s, 4) for stall_s in _stalls_s(pairs)] if forward_s else [],
        push_share=round(push_s / forward_s, 4) if forward_s else 0.0,
        forward_s=round(forward_s, 3),
        reading=_latency([(old.storage_read_latency, new.storage_read_latency) for old, new in pairs]),
        writing=_latency([(old.storage_write_latency, new.storage_write_latency) for old, new in pairs]),
        troubles={name: change.grown(count) for name, count in TROUBLES.items()},
        num_retries=sum(record.num_retries for record in fresh),
    )


def queues_s(stats: ClusterStats) -> dict[str, float | None]:
    """How long each node's queue of storage reads would take at its NIC's rate; None where that is not known."""
    waiting: Counter[str] = Counter()
    for engine in stats.engines:
        waiting[engine.node_id] += engine.read_queue_tokens
    found: dict[str, float | None] = {}
    for node in stats.nodes:
        rate, tokens = node.storage_nic_bytes_per_s, waiting[node.node_id]
        if rate and stats.block_bytes is not None and stats.block_tokens:
            found[node.node_id] = round(tokens * stats.block_bytes / stats.block_tokens / rate, 3)
        else:
            found[node.node_id] = None
    return found


def _first_tokens(before: Sequence[RequestRecord], after: Sequence[RequestRecord]) -> list[RequestRecord]:
    """Requests whose first token came between the two."""
    known = {record.request_id for record in before if record.ttft_s is not None}
    return [record for record in after if record.ttft_s is not None and record.request_id not in known]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return round(sum(found) / len(found), 4)


def _by_side(change: Change, counter: Counts) -> dict[str, float]:
    return {role.value: change.grown(_of(role, counter)) / change.interval_s for role in Role}


def _of(role: Role, counter: Counts) -> Counts:
    return lambda engine: counter(engine) if engine.role is role else 0


def _stalls_s(pairs: Sequence[tuple[EngineStats, EngineStats]]) -> list[float]:
    grown: list[float] = []
    for old, new in pairs:
        for layer, stall_s in enumerate(new.prefill_stall_s):
            known_s = old.prefill_stall_s[layer] if layer < len(old.prefill_stall_s) else 0.0
            grown += [0.0] * (layer + 1 - len(grown))
            grown[layer] += stall_s - known_s
    return grown


def _latency(counted: Sequence[tuple[LatencyCounts, LatencyCounts]]) -> BlockLatency:
    grown: Counter[int] = Counter()  # by bucket
    for old, new in counted:
        grown.update(dict(enumerate(new.counts)))
        grown.subtract(dict(enumerate(old.counts)))
    return BlockLatency(grown.total(), _percentile_s(grown, 0.5), _percentile_s(grown, 0.99))


def _percentile_s(buckets: Counter[int], share: float) -> float | None:
    num, seen = buckets.total(), 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if num and seen >= share * num:
            return BOUNDS_S[min(bucket, len(BOUNDS_S) - 1)]  # what took longer has no bound
    return None

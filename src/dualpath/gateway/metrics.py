"""/metrics: the cluster's counters as they are at the scrape, and histograms fed by every request's end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dualpath.core.plan import Direction
from dualpath.core.request import RequestRecord
from dualpath.core.stats import ClusterStats, EngineStats
from dualpath.gateway.refusals import Refusals

_TTFT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)
_TPOT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0)
_PHASE_BUCKETS_S = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

REJECTED = "rejected"  # turned away with 429; such a request has no record
_OUTCOMES = ("finished", "cancelled", "failed", REJECTED)
_ENGINE_LABELS = ("role", "node", "engine")

# (metric, EngineStats field, help)
_ENGINE_COUNTERS = (
    ("dualpath_storage_read_bytes", "storage_read_bytes", "KV bytes read from storage through the engine's node"),
    ("dualpath_storage_write_bytes", "storage_write_bytes", "KV bytes written to storage"),
    ("dualpath_local_copy_bytes", "local_copy_bytes", "KV bytes copied between host and device"),
    ("dualpath_blocks_missing", "blocks_missing", "Blocks the index promised and storage did not have"),
    ("dualpath_blocks_corrupt", "blocks_corrupt", "Blocks whose header or checksum did not hold"),
    ("dualpath_blocks_failed", "blocks_failed", "Block reads that failed or passed their deadline"),
    ("dualpath_blocks_not_persisted", "blocks_not_persisted", "Block writes that failed; serving went on"),
    ("dualpath_kv_corrupt", "kv_corrupt", "Layer Blocks and headers found damaged on their way or in memory"),
    ("dualpath_forwards", "num_forwards", "Forward passes of the model"),
)
_ENGINE_GAUGES = (
    ("dualpath_engine_requests", "num_requests", "Requests on the engine"),
    ("dualpath_read_queue_tokens", "read_queue_tokens", "Tokens whose KV waits to be read from storage"),
    ("dualpath_staging_slots", "staging_slots", "Staging slots, total"),
    ("dualpath_staging_slots_used", "staging_slots_used", "Staging slots in use"),
    ("dualpath_transfers_lingering", "transfers_lingering", "Transfers given up that may still touch their slots"),
    ("dualpath_storage_stalled_seconds", "storage_stalled_s", "How long the oldest storage call has had no answer"),
    ("dualpath_device_kv_bytes", "device_kv_bytes", "Device memory set aside for KV, bytes"),
    ("dualpath_device_kv_used_bytes", "device_kv_used_bytes", "Device memory for KV in use, bytes"),
    ("dualpath_device_kv_peak_bytes", "device_kv_peak_bytes", "Most device memory for KV ever in use, bytes"),
)
_CLUSTER_GAUGES = (
    ("dualpath_queued_requests", "num_queued_requests", "Requests that wait for engines"),
    ("dualpath_running_requests", "num_running_requests", "Requests placed on engines"),
    ("dualpath_index_blocks", "index_blocks", "Full Blocks in the block index"),
)


class Metrics:
    """One per app, with a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._cluster = _ClusterCollector()
        registry.register(self._cluster)
        self.refusals = Refusals(registry)
        self._requests = Counter("dualpath_requests", "Requests by outcome", ["outcome"], registry=registry)
        for outcome in _OUTCOMES:
            self._requests.labels(outcome)  # shown as 0 from the start
        self._ttft_s = Histogram(
            "dualpath_ttft_seconds", "Arrival to first token", buckets=_TTFT_BUCKETS_S, registry=registry
        )
        self._tpot_s = Histogram(
            "dualpath_tpot_seconds", "Time per token after the first", buckets=_TPOT_BUCKETS_S, registry=registry
        )
        self._phase_s = Histogram(
            "dualpath_phase_seconds", "Time in each phase", ["phase"], buckets=_PHASE_BUCKETS_S, registry=registry
        )
        self._counters = {
            "num_prompt_tokens": Counter("dualpath_prompt_tokens", "Prompt tokens", registry=registry),
            "num_hit_tokens": Counter("dualpath_hit_tokens", "Prompt tokens with stored KV", registry=registry),
            "num_generated_tokens": Counter("dualpath_generated_tokens", "Generated tokens", registry=registry),
            "num_recomputed_blocks": Counter("dualpath_recomputed_blocks", "Hits computed again", registry=registry),
            "num_retries": Counter("dualpath_request_retries", "Requests resumed elsewhere", registry=registry),
        }

    def observe(self, record: RequestRecord) -> None:
        """Called once per request, at its end."""
        self._requests.labels(record.outcome).inc()
        for name, counter in self._counters.items():
            counter.inc(getattr(record, name))
        if record.ttft_s is not None:
            self._ttft_s.observe(record.ttft_s)
        if record.tpot_s is not None:
            self._tpot_s.observe(record.tpot_s)
        for phase, duration_s in record.phases_s.items():
            self._phase_s.labels(phase).observe(duration_s)

    def count_rejected(self) -> None:
        self._requests.labels(REJECTED).inc()

    def render(self, stats: ClusterStats | None) -> bytes:
        """Prometheus' text format. Without stats the cluster's families are absent rather than wrong."""
        self._cluster.stats = stats
        return generate_latest(self.registry)


class _ClusterCollector(Collector):
    stats: ClusterStats | None = None

    def collect(self) -> Iterator[Metric]:
        stats = self.stats
        if stats is None:
            return
        for name, field, text in _ENGINE_COUNTERS:
            counter = CounterMetricFamily(name, text, labels=_ENGINE_LABELS)
            yield _per_engine(counter, stats.engines, field)
        for name, field, text in _ENGINE_GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=_ENGINE_LABELS)
            yield _per_engine(gauge, stats.engines, field)
        for name, field, text in _CLUSTER_GAUGES:
            yield GaugeMetricFamily(name, text, value=getattr(stats, field))
        yield _transfers(stats.engines)


def _per_engine(family: CounterMetricFamily | GaugeMetricFamily, engines: Iterable[EngineStats], field: str) -> Metric:
    for engine in engines:
        family.add_metric((engine.role.value, engine.node_id, engine.engine_id), getattr(engine, field))
    return family


def _transfers(engines: Iterable[EngineStats]) -> Metric:
    totals = {direction.value: 0 for direction in Direction}
    for engine in engines:
        for direction, num_bytes in engine.kv_transfer_bytes.items():
            totals[direction] = totals.get(direction, 0) + num_bytes
    family = CounterMetricFamily(
        "dualpath_kv_transfer_bytes", "KV bytes between engines over the compute network", labels=("direction",)
    )
    for direction, num_bytes in totals.items():
        family.add_metric((direction,), num_bytes)
    return family

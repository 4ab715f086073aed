"""The cluster's counters and gauges as they are at the scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dualpath.core.latency import BOUNDS_S, LatencyCounts
from dualpath.core.plan import Direction
from dualpath.core.stats import ClusterStats, EngineStats, NodeStats, StoreStats
from dualpath.gateway.vllm_metrics import VllmMetrics

_ENGINE_LABELS = ("role", "node", "engine")
_NODE_LABELS = ("role", "node")

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
    (
        "dualpath_prefill_push_seconds",
        "prefill_push_s",
        "Time in which forwards waited for their last new rows to leave",
    ),
    ("dualpath_prefill_forward_seconds", "prefill_forward_s", "Time in prefill forwards, stalls included"),
    (
        "dualpath_nic_read_bytes",
        "nic_read_bytes",
        "Bytes read by the storage NIC of the node: the same for its engines",
    ),
)
_ENGINE_LATENCIES = (
    ("dualpath_storage_read_latency_seconds", "storage_read_latency", "Reading one block, from its start"),
    ("dualpath_storage_write_latency_seconds", "storage_write_latency", "Writing one block, from its start"),
)
_ENGINE_GAUGES = (
    ("dualpath_engine_requests", "num_requests", "Requests on the engine"),
    ("dualpath_read_queue_tokens", "read_queue_tokens", "Tokens whose KV waits to be read from storage"),
    ("dualpath_staging_slots", "staging_slots", "Staging slots, total"),
    ("dualpath_staging_slots_used", "staging_slots_used", "Staging slots in use"),
    ("dualpath_staging_slots_aside", "staging_slots_aside", "Staging slots out of use: damage was found in them"),
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
    ("dualpath_block_tokens", "block_tokens", "Tokens in a Full Block"),
    ("dualpath_block_bytes", "block_bytes", "Bytes of a Full Block"),
    ("dualpath_epoch", "epoch", "How often an engine was lost or came back since the scheduler's start"),
)
_NODE_GAUGES: tuple[tuple[str, str, Callable[[NodeStats], float | None]], ...] = (
    ("dualpath_node_up", "1 where the node answers", lambda node: float(node.is_up)),
    ("dualpath_node_silent_seconds", "Since the node's last sign of life", lambda node: node.silent_s),
    (
        "dualpath_storage_nic_capacity_bytes_per_second",
        "Configured rate of the node's storage NIC, each way",
        lambda node: node.storage_nic_bytes_per_s,
    ),
    (
        "dualpath_compute_nic_capacity_bytes_per_second",
        "Configured rate of one of the node's compute NICs, each way",
        lambda node: node.compute_nic_bytes_per_s,
    ),
)
_STORE_GAUGES = (
    ("dualpath_store_accepts_writes", "accepts_writes", "1 where the store takes blocks"),
    ("dualpath_store_used_bytes", "used_bytes", "Bytes of blocks in the store"),
    ("dualpath_store_capacity_bytes", "capacity_bytes", "Bytes beyond which the least recently used blocks go"),
    ("dualpath_store_free_bytes", "free_bytes", "Bytes that the store's file system still has"),
    ("dualpath_store_stalled_seconds", "stalled_s", "How long the oldest call into the directory has had no answer"),
)


class ClusterCollector(Collector):
    """``stats`` is set before each scrape; without it nothing is shown rather than something wrong."""

    stats: ClusterStats | None = None
    vllm: VllmMetrics | None = None

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
        for name, field, text in _ENGINE_LATENCIES:
            yield _latencies(name, text, _ENGINE_LABELS, [(_labels(e), getattr(e, field)) for e in stats.engines])
        yield _stalls(stats.engines)
        for name, field, text in _CLUSTER_GAUGES:
            if (value := getattr(stats, field)) is not None:
                yield GaugeMetricFamily(name, text, value=value)
        waiting = GaugeMetricFamily("dualpath_requests_in_phase", "Requests in each phase now", labels=("phase",))
        for phase, count in stats.requests_in_phase.items():
            waiting.add_metric((phase,), count)
        yield waiting
        yield _transfers(stats.engines)
        yield from _nodes(stats.nodes)
        if stats.store is not None:
            yield from _store(stats.store)
        if self.vllm is not None:
            yield from self.vllm.gauges(stats)


def _per_engine(family: CounterMetricFamily | GaugeMetricFamily, engines: Iterable[EngineStats], field: str) -> Metric:
    for engine in engines:
        family.add_metric(_labels(engine), getattr(engine, field))
    return family


def _labels(engine: EngineStats) -> tuple[str, ...]:
    return (engine.role.value, engine.node_id, engine.engine_id)


def _stalls(engines: Iterable[EngineStats]) -> Metric:
    text = "Time in which a forward's compute stood still until the layer's history was there"
    family = CounterMetricFamily("dualpath_prefill_stall_seconds", text, labels=(*_ENGINE_LABELS, "layer"))
    for engine in engines:
        for layer, stall_s in enumerate(engine.prefill_stall_s):
            family.add_metric((*_labels(engine), str(layer)), stall_s)
    return family


def _nodes(nodes: Iterable[NodeStats]) -> Iterator[Metric]:
    for name, text, value in _NODE_GAUGES:
        family = GaugeMetricFamily(name, text, labels=_NODE_LABELS)
        for node in nodes:
            known = value(node)
            if known is not None:
                family.add_metric((node.role.value, node.node_id), known)
        yield family


def _store(store: StoreStats) -> Iterator[Metric]:
    for name, field, text in _STORE_GAUGES:
        value = getattr(store, field)
        if value is not None:
            yield GaugeMetricFamily(name, text, value=float(value))


def _latencies(
    name: str, text: str, labels: Sequence[str], known: Iterable[tuple[Sequence[str], LatencyCounts]]
) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, latency in known:
        if latency.counts:
            bounds = (*map(str, BOUNDS_S), "+Inf")
            buckets = list(zip(bounds, accumulate(latency.counts), strict=True))
            family.add_metric(values, buckets, latency.total_s)
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

"""The series that balancers, autoscalers and dashboards read by vLLM's names, with vLLM's ``model_name`` label."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric

from dualpath.core.latency import BOUNDS_S, LatencyCounts
from dualpath.core.phase import Phase
from dualpath.core.plan import Role
from dualpath.core.request import RequestRecord
from dualpath.core.stats import ClusterStats

_LABELS = ("model_name",)
_BUCKETS_S = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_TPOT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0)

# (metric, RequestRecord field, help)
_COUNTERS = (
    ("vllm:prompt_tokens", "num_prompt_tokens", "Prompt tokens"),
    ("vllm:generation_tokens", "num_generated_tokens", "Generated tokens"),
    ("vllm:prefix_cache_queries", "num_prompt_tokens", "Prompt tokens looked up in the block index"),
    ("vllm:prefix_cache_hits", "num_hit_tokens", "Prompt tokens with stored KV"),
)
# vLLM's prefill lasts from the choice of engines to the first token: with us the wait for slots and storage too.
_STAGES = {
    "vllm:request_queue_time_seconds": (Phase.QUEUED,),
    "vllm:request_prefill_time_seconds": (Phase.PLACED, Phase.READING, Phase.READY, Phase.PREFILLING),
    "vllm:request_decode_time_seconds": (Phase.HANDED_OVER, Phase.DECODING),
}


class VllmMetrics:
    """Requests are counted at their end; what waits and runs is taken from the scrape's stats."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._model_name = model_name
        self._counters = [(field, self._counter(registry, name, text)) for name, field, text in _COUNTERS]
        self._success = self._counter(registry, "vllm:request_success", "Requests that finished")
        self._ttft_s = self._histogram(registry, "vllm:time_to_first_token_seconds", "Arrival to first token")
        self._tpot_s = self._histogram(
            registry, "vllm:request_time_per_output_token_seconds", "A request's mean after its first", _TPOT_BUCKETS_S
        )
        self._total_s = self._histogram(registry, "vllm:e2e_request_latency_seconds", "Arrival to last token")
        self._stages = [
            (phases, self._histogram(registry, name, "Time in " + ", ".join(phase.value for phase in phases)))
            for name, phases in _STAGES.items()
        ]

    def _counter(self, registry: CollectorRegistry, name: str, text: str) -> Counter:
        return Counter(name, text, _LABELS, registry=registry).labels(self._model_name)

    def _histogram(
        self, registry: CollectorRegistry, name: str, text: str, buckets: tuple[float, ...] = _BUCKETS_S
    ) -> Histogram:
        return Histogram(name, text, _LABELS, buckets=buckets, registry=registry).labels(self._model_name)

    def observe(self, record: RequestRecord) -> None:
        for field, counter in self._counters:
            counter.inc(getattr(record, field))
        if record.outcome == Phase.FINISHED.value:
            self._success.inc()
            for phases, histogram in self._stages:
                histogram.observe(sum(record.phases_s.get(phase.value, 0.0) for phase in phases))
        observed = (
            (self._ttft_s, record.ttft_s),
            (self._tpot_s, record.tpot_s),
            (self._total_s, record.total_s if record.outcome == Phase.FINISHED.value else None),
        )
        for histogram, duration_s in observed:
            if duration_s is not None:
                histogram.observe(duration_s)

    def gauges(self, stats: ClusterStats) -> Iterator[Metric]:
        """``kv_cache_usage_perc`` is a part of 1, as vLLM's is, of the decode engines' device memory for KV."""
        decode = [engine for engine in stats.engines if engine.role is Role.DECODE]
        total_bytes = sum(engine.device_kv_bytes for engine in decode)
        yield self._gauge("vllm:num_requests_waiting", "Requests that wait for engines", stats.num_queued_requests)
        yield self._gauge("vllm:num_requests_running", "Requests placed on engines", stats.num_running_requests)
        if stats.inter_token_latency.counts:
            yield self._inter_token(stats.inter_token_latency)
        if stats.block_tokens and stats.block_bytes:
            yield self._cache_config(stats.block_tokens, total_bytes // stats.block_bytes)
        if total_bytes:
            used = sum(engine.device_kv_used_bytes for engine in decode) / total_bytes
            yield self._gauge("vllm:kv_cache_usage_perc", "Device KV in use on decode engines, of 1", used)

    def _inter_token(self, latency: LatencyCounts) -> Metric:
        text = "Between two tokens of a request"
        family = HistogramMetricFamily("vllm:inter_token_latency_seconds", text, labels=_LABELS)
        buckets = list(zip((*map(str, BOUNDS_S), "+Inf"), accumulate(latency.counts), strict=True))
        family.add_metric((self._model_name,), buckets, latency.total_s)
        return family

    def _cache_config(self, block_tokens: int, num_blocks: int) -> Metric:
        """vLLM's says all in labels; readers of it take the size of a block and how many there are."""
        labels = {"block_size": str(block_tokens), "num_gpu_blocks": str(num_blocks), "engine": "0"}
        family = GaugeMetricFamily("vllm:cache_config_info", "Block size and count", labels=(*_LABELS, *labels))
        family.add_metric((self._model_name, *labels.values()), 1.0)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=_LABELS)
        family.add_metric((self._model_name,), value)
        return family

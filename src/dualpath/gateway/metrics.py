"""/metrics: requests are counted at their end; what a cluster does and holds is taken from the scrape's stats."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from dualpath.core.request import RequestRecord
from dualpath.core.stats import ClusterStats
from dualpath.gateway.cluster_metrics import ClusterCollector
from dualpath.gateway.http.refusals import RefusalCounter
from dualpath.gateway.vllm_metrics import VllmMetrics

_TTFT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)
_TPOT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0)
_PHASE_BUCKETS_S = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

REJECTED = "rejected"  # turned away with 429; such a request has no record
_OUTCOMES = ("finished", "cancelled", "failed", REJECTED)
SOURCES = ("storage_prefill", "storage_decode", "memory", "computed")


class Metrics:
    """One per app, with a registry of its own."""

    def __init__(self) -> None:
        # A series more for each counter and histogram, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._vllm: VllmMetrics | None = None
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # of the gateway and, with all engines in one process, of everything
        self._cluster = ClusterCollector()
        registry.register(self._cluster)
        self.refusals = RefusalCounter(registry)
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
        self._sources = Counter(
            "dualpath_prompt_tokens_by_source",
            "Prompt tokens whose KV storage gave, by the side that read it, that was there, or that was computed",
            ["source"],
            registry=registry,
        )
        for source in SOURCES:
            self._sources.labels(source)
        self._counters = {
            "num_prompt_tokens": Counter("dualpath_prompt_tokens", "Prompt tokens", registry=registry),
            "num_hit_tokens": Counter("dualpath_hit_tokens", "Prompt tokens with stored KV", registry=registry),
            "num_generated_tokens": Counter("dualpath_generated_tokens", "Generated tokens", registry=registry),
            "num_recomputed_blocks": Counter("dualpath_recomputed_blocks", "Hits computed again", registry=registry),
            "num_retries": Counter("dualpath_request_retries", "Requests resumed elsewhere", registry=registry),
        }

    def name_model(self, model_name: str) -> None:
        """Serve vLLM's names too, for this model. Once, when the model is known."""
        self._vllm = self._cluster.vllm = VllmMetrics(self.registry, model_name)

    def observe(self, record: RequestRecord) -> None:
        """Called once per request, at its end."""
        if self._vllm is not None:
            self._vllm.observe(record)
        self._requests.labels(record.outcome).inc()
        for name, counter in self._counters.items():
            counter.inc(getattr(record, name))
        for source, num_tokens in tokens_by_source(record).items():
            self._sources.labels(source).inc(num_tokens)
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


def tokens_by_source(record: RequestRecord) -> dict[str, int]:
    """A prompt's tokens; the sum is ``num_prompt_tokens``. Hits are shared out by the bytes that each side read.

    ``memory``: hits for which storage was not read.
    """
    hits = min(record.num_hit_tokens, record.num_prompt_tokens)
    read = {side: record.storage_read_bytes.get(side, 0) for side in ("prefill", "decode")}
    total = sum(read.values())
    by_prefill = round(hits * read["prefill"] / total) if total else 0
    numbers = (by_prefill, hits - by_prefill if total else 0, 0 if total else hits, record.num_prompt_tokens - hits)
    return dict(zip(SOURCES, numbers, strict=True))

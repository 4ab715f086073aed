"""vLLM's names for what its readers scrape."""

import httpx
from prometheus_client.parser import text_string_to_metric_families as parse
from tests.gateway.fakes import FakeBackend

from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.plan import Role
from dualpath.core.request import RequestRecord
from dualpath.core.stats import ClusterStats, EngineStats
from dualpath.gateway.metrics import Metrics

PHASES_S = {"queued": 1.0, "placed": 2.0, "reading": 4.0, "ready": 8.0, "prefilling": 16.0, "decoding": 32.0}


def record(outcome: str) -> RequestRecord:
    return RequestRecord(
        RequestId("r"),
        0.0,
        num_prompt_tokens=100,
        num_hit_tokens=64,
        num_generated_tokens=7,
        outcome=outcome,
        ttft_s=31.0,
        tpot_s=0.5,
        total_s=63.0,
        phases_s=PHASES_S,
    )


def engine(role: Role, used_bytes: int) -> EngineStats:
    return EngineStats(EngineId("e"), NodeId("n"), role, device_kv_bytes=100, device_kv_used_bytes=used_bytes)


def samples(stats: ClusterStats | None, *outcomes: str) -> dict[str, float]:
    metrics = Metrics()
    metrics.name_model("m")
    for outcome in outcomes:
        metrics.observe(record(outcome))
    found = [sample for family in parse(metrics.render(stats).decode()) for sample in family.samples]
    assert not [sample.name for sample in found if sample.name.endswith("_created")]
    ours = [sample for sample in found if sample.name.startswith("vllm:") and "le" not in sample.labels]
    assert all(sample.labels == {"model_name": "m"} for sample in ours)
    return {sample.name: sample.value for sample in ours}


def test_counts_and_times_of_requests() -> None:
    values = samples(None, "finished", "cancelled")
    assert values["vllm:prompt_tokens_total"] == values["vllm:prefix_cache_queries_total"] == 200
    assert (values["vllm:prefix_cache_hits_total"], values["vllm:generation_tokens_total"]) == (128, 14)
    assert values["vllm:request_success_total"] == values["vllm:e2e_request_latency_seconds_count"] == 1
    assert values["vllm:request_queue_time_seconds_sum"] == 1
    assert values["vllm:request_prefill_time_seconds_sum"] == 30
    assert values["vllm:request_decode_time_seconds_sum"] == 32
    assert values["vllm:time_to_first_token_seconds_sum"] == 62
    assert values["vllm:request_time_per_output_token_seconds_sum"] == 1


def test_gauges_are_those_of_the_scrape() -> None:
    engines = (engine(Role.PREFILL, 100), engine(Role.DECODE, 30), engine(Role.DECODE, 20))
    values = samples(ClusterStats(engines, num_queued_requests=3, num_running_requests=4))
    assert (values["vllm:num_requests_waiting"], values["vllm:num_requests_running"]) == (3, 4)
    assert values["vllm:kv_cache_usage_perc"] == 0.25


def test_what_is_not_known_is_absent() -> None:
    assert not {"vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"} & set(samples(None))
    assert "vllm:kv_cache_usage_perc" not in samples(ClusterStats(()))


async def test_an_app_serves_them_for_its_model(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    await http.post("/v1/completions", json={"prompt": "abc"})
    lines = (await http.get("/metrics")).text.splitlines()
    assert f'vllm:prompt_tokens_total{{model_name="{backend.model_name}"}} 3.0' in lines
    assert any(line.startswith(f'vllm:num_requests_waiting{{model_name="{backend.model_name}"}}') for line in lines)

"""Series of a scrape's stats: stalls per layer, latencies, NIC capacities, the store, prompt tokens by source."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parse

from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.latency import Latencies
from dualpath.core.plan import Role
from dualpath.core.request import RequestRecord
from dualpath.core.stats import ClusterStats, EngineStats, NodeStats, StoreStats
from dualpath.gateway.metrics import Metrics, tokens_by_source


def samples(stats: ClusterStats, *records: RequestRecord) -> dict[tuple[str, ...], float]:
    metrics = Metrics()
    metrics.name_model("m")
    for record in records:
        metrics.observe(record)
    families = parse(metrics.render(stats).decode())
    order = ("role", "node", "engine", "layer", "source", "model_name", "block_size", "num_gpu_blocks", "le")
    found = {}
    for sample in (sample for family in families for sample in family.samples):
        found[sample.name, *(sample.labels[name] for name in order if name in sample.labels)] = sample.value
    return found


def latencies(*durations_s: float) -> Latencies:
    counted = Latencies()
    for duration_s in durations_s:
        counted.add(duration_s)
    return counted


def test_engines() -> None:
    engine = EngineStats(
        EngineId("p0"),
        NodeId("n0"),
        Role.PREFILL,
        prefill_stall_s=(0.5, 0.25),
        prefill_forward_s=3.0,
        storage_read_latency=latencies(0.004, 0.004, 0.3, 99.0).snapshot(),
    )
    found = samples(ClusterStats((engine,)))
    where = ("prefill", "n0", "p0")
    assert found["dualpath_prefill_stall_seconds_total", *where, "0"] == 0.5
    assert found["dualpath_prefill_stall_seconds_total", *where, "1"] == 0.25
    assert found["dualpath_prefill_forward_seconds_total", *where] == 3.0
    name = "dualpath_storage_read_latency_seconds"
    assert found[f"{name}_bucket", *where, "0.0025"] == 0
    assert found[f"{name}_bucket", *where, "0.005"] == 2
    assert found[f"{name}_bucket", *where, "30.0"] == 3
    assert found[f"{name}_bucket", *where, "+Inf"] == found[f"{name}_count", *where] == 4
    assert not [key for key in found if key[0].startswith("dualpath_storage_write_latency")]


def test_nodes_and_the_store() -> None:
    nodes = (
        NodeStats(NodeId("n0"), Role.PREFILL, (), storage_nic_bytes_per_s=5e7),
        NodeStats(NodeId("n1"), Role.DECODE, (), is_up=False, silent_s=4.5),
    )
    store = StoreStats(accepts_writes=False, used_bytes=7, capacity_bytes=10)
    found = samples(ClusterStats((), nodes=nodes, store=store, epoch=3))
    assert found["dualpath_node_up", "prefill", "n0"] == 1
    assert found["dualpath_node_up", "decode", "n1"] == 0
    assert found["dualpath_node_silent_seconds", "decode", "n1"] == 4.5
    assert found["dualpath_storage_nic_capacity_bytes_per_second", "prefill", "n0"] == 5e7
    assert ("dualpath_storage_nic_capacity_bytes_per_second", "decode", "n1") not in found
    assert found["dualpath_store_accepts_writes",] == 0
    assert found["dualpath_store_capacity_bytes",] == 10
    assert ("dualpath_store_free_bytes",) not in found
    assert found["dualpath_epoch",] == 3


def test_vllm_names_that_need_stats() -> None:
    engines = (EngineStats(EngineId("d0"), NodeId("n"), Role.DECODE, device_kv_bytes=1000),)
    gaps = latencies(0.02, 0.02).snapshot()
    found = samples(ClusterStats(engines, block_tokens=64, block_bytes=100, inter_token_latency=gaps))
    assert found["vllm:cache_config_info", "0", "m", "64", "10"] == 1
    assert found["vllm:inter_token_latency_seconds_bucket", "m", "0.025"] == 2
    assert found["process_cpu_seconds_total",] > 0


def record(prompt: int, hits: int, prefill: int, decode: int) -> RequestRecord:
    read = {"prefill": prefill, "decode": decode}
    return RequestRecord(RequestId("r"), 0.0, prompt, hits, storage_read_bytes=read, outcome="finished")


def test_sources() -> None:
    assert list(tokens_by_source(record(100, 64, 300, 100)).values()) == [48, 16, 0, 36]
    assert list(tokens_by_source(record(100, 64, 0, 0)).values()) == [0, 0, 64, 36]
    found = samples(ClusterStats(()), record(100, 64, 300, 100), record(10, 0, 0, 0))
    assert found["dualpath_prompt_tokens_by_source_total", "computed"] == 46


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**12), st.integers(0, 10**12))
def test_sources_make_up_the_prompt(prompt: int, hits: int, prefill: int, decode: int) -> None:
    numbers = tokens_by_source(record(prompt, min(hits, prompt), prefill, decode))
    assert sum(numbers.values()) == prompt
    assert min(numbers.values()) >= 0

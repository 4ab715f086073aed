"""The panels' numbers: between two looks, of what came between them only, and nothing where nothing is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.latency import BOUNDS_S, Latencies
from dualpath.core.plan import Role
from dualpath.core.request import RequestRecord
from dualpath.core.stats import ClusterStats, EngineStats, NodeStats
from dualpath.gateway.page.panels import Panels, between, queues_s
from dualpath.gateway.verdict.change import ClusterLook

PE = EngineStats(EngineId("pe0"), NodeId("n0"), Role.PREFILL)
DE = EngineStats(EngineId("de0"), NodeId("n1"), Role.DECODE)


def record(name: str, ttft_s: float | None = 1.0, **fields: Any) -> RequestRecord:
    return RequestRecord(RequestId(name), 100.0, 64, ttft_s=ttft_s, **fields)


def panels(
    before: tuple[EngineStats, ...] = (PE, DE),
    after: tuple[EngineStats, ...] = (PE, DE),
    records: tuple[list[RequestRecord], list[RequestRecord]] = ([], []),
) -> Panels:
    return between(
        ClusterLook(0.0, ClusterStats(before), records[0]), ClusterLook(10.0, ClusterStats(after), records[1])
    )


def test_first_tokens_are_those_that_came_between() -> None:
    old = [record("done", phases_s={"reading": 9.0}), record("runs", None, phases_s={"reading": 0.5})]
    new = [
        old[0],
        record("runs", 2.0, path="split", num_hit_tokens=48,
               phases_s={"reading": 1.5, "prefilling": 0.5, "decoding": 7.0},
               storage_read_bytes={"prefill": 10, "decode": 20}, num_retries=2),
        record("new", 1.0, phases_s={"reading": 0.5}),
        record("still", None, phases_s={"reading": 5.0}),
    ]  # fmt: skip
    found = panels(records=(old, new))
    assert (found.num_first_tokens, found.ttft_s, found.num_retries) == (2, 1.5, 2)
    assert found.ttft_phases_s["reading"] == 1.0
    assert found.ttft_phases_s["prefilling"] == 0.25
    assert "decoding" not in found.ttft_phases_s
    assert found.paths == {"split": 1, "none": 1}
    assert found.tokens_by_source == {"storage_prefill": 16, "storage_decode": 32, "computed": 80}


def test_nothing_came() -> None:
    found = panels()
    assert (found.ttft_s, found.ttft_phases_s, found.stall_shares, found.push_share) == (None, {}, [], 0.0)
    assert (found.reading.num, found.reading.p99_s) == (0, None)


def test_bytes_by_side_and_direction() -> None:
    after = (
        replace(PE, storage_read_bytes=100, kv_transfer_bytes={"decode_to_prefill": 30}),
        replace(DE, storage_read_bytes=300, storage_write_bytes=50, kv_transfer_bytes={"prefill_to_decode": 20}),
    )
    found = panels(after=after)
    assert found.read_bytes_per_s == {"prefill": 10.0, "decode": 30.0}
    assert found.written_bytes_per_s == {"prefill": 0.0, "decode": 5.0}
    assert found.transferred_bytes_per_s == {"decode_to_prefill": 3.0, "prefill_to_decode": 2.0}


def test_stalls_are_shares_of_what_was_computed_meanwhile() -> None:
    before = replace(PE, prefill_stall_s=(5.0, 5.0), prefill_forward_s=50.0, prefill_push_s=1.0)
    after = replace(PE, prefill_stall_s=(6.0, 5.5), prefill_forward_s=60.0, prefill_push_s=3.0)
    found = panels((before, DE), (after, DE))
    assert (found.stall_shares, found.push_share, found.forward_s) == ([0.1, 0.05], 0.2, 10.0)
    found = panels((PE, DE), (after, DE))  # before there was no layer to tell of
    assert (found.stall_shares, found.push_share) == ([0.1, round(5.5 / 60, 4)], 0.05)
    assert panels((after, DE), (after, DE)).stall_shares == []


@pytest.mark.parametrize(("slow", "p99_s"), [(0, 0.005), (2, BOUNDS_S[-1])])
def test_latencies_of_all_engines_together(slow: int, p99_s: float) -> None:
    counted = Latencies()
    counted.add(20.0)
    before = replace(PE, storage_read_latency=counted.snapshot())
    for _ in range(98):
        counted.add(0.004)
    other = Latencies()
    for _ in range(slow):
        other.add(99.0)
    after = replace(PE, storage_read_latency=counted.snapshot())
    found = panels((before, DE), (after, replace(DE, storage_read_latency=other.snapshot())))
    assert (found.reading.num, found.reading.p50_s, found.reading.p99_s) == (98 + slow, 0.005, p99_s)
    assert found.writing.num == 0


def test_troubles_are_those_of_the_time() -> None:
    before = replace(DE, blocks_missing=7, kv_corrupt=1)
    after = replace(DE, blocks_missing=9, kv_corrupt=1, blocks_not_persisted=3)
    found = panels((PE, before), (PE, after))
    assert {name: num for name, num in found.troubles.items() if num} == {"missing blocks": 2, "not written": 3}


def test_an_engine_that_was_started_again_does_not_count() -> None:
    found = panels((PE, replace(DE, storage_read_bytes=900)), (PE, replace(DE, storage_read_bytes=100)))
    assert found.read_bytes_per_s["decode"] == 0.0


def test_queues_in_seconds() -> None:
    nodes = (
        NodeStats(NodeId("n0"), Role.PREFILL, (PE.engine_id,), storage_nic_bytes_per_s=1000.0),
        NodeStats(NodeId("n1"), Role.DECODE, (DE.engine_id,)),
    )
    engines = (replace(PE, read_queue_tokens=128), replace(DE, read_queue_tokens=64))
    stats = ClusterStats(engines, nodes=nodes, block_tokens=64, block_bytes=1000)
    assert queues_s(stats) == {"n0": 2.0, "n1": None}
    assert queues_s(replace(stats, block_bytes=None)) == {"n0": None, "n1": None}

"""Comparing real with simulated, and what the simulator had to learn from the live system to agree with it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tests.sim.clusters import STORAGE_BOUND, run, small_spec

from dualpath.sim.results import rollout_json
from dualpath.sim.validation import BYTES_TOLERANCE, JCT_TOLERANCE, Row, compare, overhead
from dualpath.trace.trajectory import Round, Trajectory

BLOCK_TOKENS = 64
BLOCK_BYTES = BLOCK_TOKENS * STORAGE_BOUND.kv_bytes_per_token


def entry(
    jct_s: float, ttft_s: float, read: dict[str, int], written: dict[str, int], requests: int = 1
) -> dict[str, Any]:
    summary = {"mean": ttft_s, "p50": ttft_s, "p90": ttft_s, "p99": ttft_s}
    traffic = {"storage_read_bytes": read, "storage_write_bytes": written}
    return {"jct_s": jct_s, "ttft_s": summary, "requests": requests, **traffic}


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.what: row for row in rows}


def test_rows_of_a_comparison() -> None:
    real = [
        entry(9.0, 2.0, {"p": 1000, "d": 0}, {"p": 0, "d": 50}),
        entry(11.0, 4.0, {"p": 1000, "d": 0}, {"p": 0, "d": 50}),
    ]
    rows = by_name(compare(real, [entry(10.9, 4.5, {"p": 970, "d": 30}, {"p": 0, "d": 50})]))
    assert list(rows) == [
        *("JCT", "TTFT mean", "TTFT p50", "TTFT p99"),
        *("p read", "d read", "all NICs read", "d written", "all NICs written"),
    ]
    assert rows["JCT"].real_mean == 10.0
    assert rows["JCT"].spread == pytest.approx(0.2)
    assert rows["JCT"].rel_error == pytest.approx(0.09)
    assert rows["JCT"].holds
    assert rows["TTFT mean"].rel_error == pytest.approx(0.5)
    assert rows["TTFT mean"].holds, "times to first token carry no verdict"
    assert rows["p read"].rel_error == pytest.approx(-0.03)
    assert not rows["p read"].holds
    assert rows["d read"].rel_error == math.inf
    assert not rows["d read"].holds
    assert rows["d read"].as_json()["rel_error"] is None
    assert rows["all NICs read"].holds
    assert rows["d written"].rel_error == 0.0


def test_equal_nodes_are_compared_together_too() -> None:
    """Which of two decode nodes a request went to is chance; how much both of them read is not."""
    real = [entry(1.0, 1.0, {"prefill-node0": 40, "decode-node0": 100, "decode-node1": 200}, {})]
    simulated = [entry(1.0, 1.0, {"prefill-node0": 40, "decode-node0": 190, "decode-node1": 110}, {})]
    rows = by_name(compare(real, simulated))
    assert [what for what, row in rows.items() if not row.holds] == ["decode-node0 read", "decode-node1 read"]
    assert (rows["decode NICs read"].real, rows["decode NICs read"].simulated) == ((300,), (300,))
    assert "prefill NICs read" not in rows, "one node is its role"


@pytest.mark.parametrize("tolerance", [JCT_TOLERANCE, BYTES_TOLERANCE])
@pytest.mark.parametrize("sign", [-1, 1])
def test_an_error_beyond_its_tolerance_does_not_hold(tolerance: float, sign: int) -> None:
    assert Row("x", "s", (100.0,), (100 * (1 + sign * (tolerance - 1e-6)),), tolerance).holds
    assert not Row("x", "s", (100.0,), (100 * (1 + sign * (tolerance + 1e-6)),), tolerance).holds


@pytest.mark.parametrize(
    ("simulated", "holds"),
    [((90.0, 97.9), False), ((90.0, 98.1), True), ((110.0,), True), ((122.3, 200.0), True), ((122.5, 200.0), False)],
)
def test_ranges_of_bytes_must_meet(simulated: tuple[float, ...], holds: bool) -> None:
    assert Row("x", "bytes", (100.0, 120.0), simulated, 0.02, is_ranged=True).holds == holds


def test_overheads_are_what_a_lone_agents_requests_miss() -> None:
    real, simulated = entry(20.0, 1.5, {}, {}, requests=10), entry(14.0, 1.1, {}, {})
    found = overhead(real, simulated)
    assert found.admission_s == pytest.approx(0.4)
    assert found.handover_s == pytest.approx(0.2)
    faster = overhead(entry(13.0, 1.0, {}, {}, requests=10), simulated)
    assert (faster.admission_s, faster.handover_s) == (0.0, 0.0), "never negative"


def test_a_last_token_that_completes_a_block_is_stored() -> None:
    """The live decode engine computes its KV, for the next turn expects every whole block."""
    agent = Trajectory("a", (Round(BLOCK_TOKENS - 2, 2), Round(BLOCK_TOKENS, 2)))
    done = run(small_spec(workload={"agents": 1}), "basic", STORAGE_BOUND, [agent])
    assert done.observer.hit_tokens == BLOCK_TOKENS


def test_stored_blocks_have_headers() -> None:
    agent = Trajectory("a", (Round(10 * BLOCK_TOKENS, 2), Round(BLOCK_TOKENS, 2)))
    spec = small_spec(1, 1, workload={"agents": 1}, cluster={"block_header_bytes": 4096})
    found = rollout_json(run(spec, "basic", STORAGE_BOUND, [agent]))
    assert found["storage_read_bytes"] == {"prefill-node0": 10 * (BLOCK_BYTES + 4096), "decode-node0": 0}
    assert found["storage_write_bytes"] == {"prefill-node0": 0, "decode-node0": 11 * (BLOCK_BYTES + 4096)}


def slow(num_agents: int, holds: bool, **cluster: Any) -> Any:
    """A storage NIC that takes a second for a block."""
    return small_spec(
        1,
        1,
        workload={"agents": num_agents},
        cluster={"storage_nic_bytes_per_s": float(BLOCK_BYTES), "engines_per_node": 1, **cluster},
        scheduler={"admission_s": 0.0, "handover_s": 0.0, "fetch_interval_s": 0.0, "writes_hold_staging": holds},
    )


def test_a_write_under_way_is_awaited_before_anything_is_reserved() -> None:
    agent = Trajectory("a", (Round(10 * BLOCK_TOKENS, 2), Round(BLOCK_TOKENS, 2)))
    found = rollout_json(run(slow(1, False), "basic", STORAGE_BOUND, [agent]))
    assert found["jct_s"] == pytest.approx(20.0, abs=0.1), "10 blocks written, then read"
    assert 2 * found["phases_s"]["placed"]["mean"] == pytest.approx(10.0, abs=0.1)
    assert 2 * found["phases_s"]["reading"]["mean"] == pytest.approx(10.0, abs=0.1)


def test_staging_memory_stays_in_use_while_it_is_written_from() -> None:
    """Room for 11 blocks: the second prompt of 10 waits until 9 of the first one's are on storage."""
    agents = [Trajectory(name, (Round(10 * BLOCK_TOKENS, 2),)) for name in "ab"]
    for holds, jct_s in ((False, 0.0), (True, 9.0)):
        spec = slow(2, holds, staging_bytes=11 * BLOCK_BYTES)
        found = rollout_json(run(spec, "shorter", STORAGE_BOUND, agents))
        assert found["jct_s"] == pytest.approx(jct_s, abs=0.1)


def test_a_workspace_bounds_a_forward() -> None:
    agents = [Trajectory(name, (Round(10 * BLOCK_TOKENS - 2, 2),)) for name in "abcd"]
    for tokens, num_forwards in ((None, 1), (20 * BLOCK_TOKENS, 2), (10 * BLOCK_TOKENS, 4)):
        spec = small_spec(
            1, 1, workload={"agents": 4}, cluster={"engines_per_node": 1, "prefill_workspace_tokens": tokens}
        )
        done = run(spec, "layerwise", STORAGE_BOUND, agents)
        assert sum(group.num_forwards for group in done.cluster.groups) == num_forwards

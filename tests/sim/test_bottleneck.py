"""The bottleneck-free range against brute force: every transfer of every engine pair, hop by hop."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dualpath.core.errors import ConfigError
from dualpath.sim.bottleneck import (
    NodeShape,
    Resource,
    binding_resource,
    bottleneck_free_range,
    loads,
    pair_traffic,
    utilisations,
)

# Hops of the two read paths (arXiv 2602.21548, section 4.1): (side, what) for each of a byte's touches. Side P or D.
PE_PATH = [
    ("P", "dram"),  # storage -> PE buffer
    *[("P", "dram"), ("P", "read"), ("P", "write")],  # PE buffer -> PE HBM, looped back through its NIC
    *[("P", "read"), ("D", "write"), ("D", "dram")],  # PE HBM -> DE buffer
    *[("D", "dram"), ("D", "read"), ("D", "write")],  # DE buffer -> DE HBM, looped back
]
DE_PATH = [
    ("D", "dram"),  # storage -> DE buffer
    *[("D", "dram"), ("D", "read"), ("P", "write")],  # DE buffer -> PE HBM
    *[("D", "dram"), ("D", "read"), ("D", "write")],  # DE buffer -> DE HBM
]


def brute_force(num_prefill: int, num_decode: int, node: NodeShape) -> dict[Resource, float]:
    """Each engine gets its share of its node's storage reads and spreads it over all engines of the other kind."""
    share = node.storage_bytes_per_s / node.num_gpus
    engines = {"P": num_prefill * node.num_gpus, "D": num_decode * node.num_gpus}
    on: Counter[tuple[str, int, str]] = Counter()  # (side, NIC or node, what) -> bytes/s
    for pe in range(engines["P"]):
        for de in range(engines["D"]):
            for path, amount in ((PE_PATH, share / engines["D"]), (DE_PATH, share / engines["P"])):
                for side, what in path:
                    engine = pe if side == "P" else de
                    on[side, engine // node.num_gpus if what == "dram" else engine, what] += amount

    def most(side: str, what: str) -> float:
        return max(amount for (on_side, _, on_what), amount in on.items() if (on_side, on_what) == (side, what))

    return {
        Resource.STORAGE_NIC: node.snic_bytes_per_s,
        Resource.PREFILL_CNIC_READ: most("P", "read"),
        Resource.PREFILL_CNIC_WRITE: most("P", "write"),
        Resource.DECODE_CNIC_READ: most("D", "read"),
        Resource.DECODE_CNIC_WRITE: most("D", "write"),
        Resource.PREFILL_DRAM: most("P", "dram"),
        Resource.DECODE_DRAM: most("D", "dram"),
    }


nodes = st.builds(
    NodeShape,
    num_gpus=st.integers(1, 6),
    cnic_bytes_per_s=st.sampled_from([25e9, 50e9, 100e9]),
    num_snics=st.integers(1, 4),
    snic_bytes_per_s=st.sampled_from([12.5e9, 25e9, 50e9]),
    dram_bytes_per_s=st.floats(100e9, 2000e9),
)
counts = st.integers(1, 4)


@given(counts, counts, nodes)
def test_loads_are_those_of_every_transfer_added_up(num_prefill: int, num_decode: int, node: NodeShape) -> None:
    expected = brute_force(num_prefill, num_decode, node)
    assert loads(num_prefill, num_decode, node) == pytest.approx(expected)


@given(counts, counts, nodes)
def test_the_range_holds_exactly_where_nothing_is_overloaded(
    num_prefill: int, num_decode: int, node: NodeShape
) -> None:
    capacity = dict.fromkeys(Resource, node.cnic_bytes_per_s)
    capacity[Resource.PREFILL_DRAM] = capacity[Resource.DECODE_DRAM] = node.dram_bytes_per_s
    capacity[Resource.STORAGE_NIC] = node.snic_bytes_per_s
    load = brute_force(num_prefill, num_decode, node)
    fullest = max(load[resource] / capacity[resource] for resource in Resource)
    assume(fullest == 1 or abs(fullest - 1) > 1e-9)
    ratio = num_prefill / num_decode
    try:
        free = bottleneck_free_range(node)
    except ConfigError:
        assert fullest > 1  # no ratio is free: this one is not
        return
    assume(min(abs(ratio - free.low), abs(ratio - free.high)) > 1e-9)
    assert (ratio in free) == (fullest <= 1)
    is_storage_bound = binding_resource(num_prefill, num_decode, node) is Resource.STORAGE_NIC
    assert is_storage_bound == (ratio in free)


@given(nodes)
def test_the_ends_are_named_after_what_saturates_there(node: NodeShape) -> None:
    try:
        free = bottleneck_free_range(node)
    except ConfigError:
        assume(False)
    assume(free.low < free.high)
    # P/D just outside each end, with large node counts to come close; other resources still have room.
    for ratio, limit in ((free.low * 0.999, free.low_limit), (free.high * 1.001, free.high_limit)):
        num_decode = 10_000_000
        num_prefill = round(ratio * num_decode)
        used = utilisations(num_prefill, num_decode, node)
        assert used[limit] > 1
        assert used[limit] == pytest.approx(1, abs=2e-3)


def test_the_papers_node() -> None:
    free = bottleneck_free_range(NodeShape())
    assert (free.low, free.high) == (pytest.approx(1 / 7), 3.5)
    assert free.low_limit is Resource.PREFILL_CNIC_WRITE
    assert free.high_limit in (Resource.DECODE_CNIC_WRITE, Resource.DECODE_DRAM)  # both end at 7/2
    assert 2 / 4 in free
    for num_prefill, num_decode in ((1, 7), (7, 2), (2, 4), (48, 96)):
        assert binding_resource(num_prefill, num_decode, NodeShape()) is Resource.STORAGE_NIC
    assert binding_resource(1, 8, NodeShape()) is Resource.PREFILL_CNIC_WRITE
    assert binding_resource(4, 1, NodeShape(dram_bytes_per_s=2e12)) is Resource.DECODE_CNIC_WRITE
    assert binding_resource(4, 1, NodeShape(dram_bytes_per_s=450e9)) is Resource.DECODE_DRAM


def test_two_storage_nics_narrow_the_range() -> None:
    free = bottleneck_free_range(NodeShape(num_snics=2, dram_bytes_per_s=1e12))
    assert (free.low, free.high) == (pytest.approx(2 / 6), 1.5)
    assert free.high_limit is Resource.DECODE_CNIC_WRITE
    short_of_dram = bottleneck_free_range(NodeShape(num_snics=2))
    assert (short_of_dram.high, short_of_dram.high_limit) == (1.0, Resource.DECODE_DRAM)


def test_storage_nics_of_another_speed_count_by_bandwidth() -> None:
    assert NodeShape(num_snics=4, snic_bytes_per_s=12.5e9).storage_share == 1
    same = bottleneck_free_range(NodeShape(num_snics=4, snic_bytes_per_s=12.5e9))
    assert same == bottleneck_free_range(NodeShape())


def test_pair_traffic_adds_up_to_all_storage_reads() -> None:
    node = NodeShape(num_gpus=4, num_snics=2)
    by_pe, by_de = pair_traffic(3, 5, node)
    pairs = 3 * 4 * 5 * 4
    assert by_pe * pairs == pytest.approx(3 * 100e9)
    assert by_de * pairs == pytest.approx(5 * 100e9)


def test_a_range_can_be_empty() -> None:
    free = bottleneck_free_range(NodeShape(num_gpus=2, num_snics=1))  # s = g/2: DE reads allow no P at all
    assert free.low > free.high
    assert 1.0 not in free


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (NodeShape(num_gpus=1), "num_snics = 1: storage bandwidth is 1 compute NICs' of 1"),
        (NodeShape(num_gpus=8, num_snics=8), "storage bandwidth is 8 compute NICs' of 8"),
        (NodeShape(num_gpus=4, num_snics=3), "storage bandwidth is 3 compute NICs' of 4"),
        (NodeShape(dram_bytes_per_s=80e9), "dram_bytes_per_s = 8e\\+10: must be at least twice"),
    ],
)
def test_where_no_ratio_helps_the_reason_is_given(node: NodeShape, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bottleneck_free_range(node)


@pytest.mark.parametrize("field", ["num_gpus", "cnic_bytes_per_s", "num_snics", "snic_bytes_per_s", "dram_bytes_per_s"])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_a_node_has_positive_parts(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field} must be a positive number"):
        NodeShape(**{field: value})


def test_a_cluster_has_nodes_of_both_kinds() -> None:
    with pytest.raises(ConfigError, match="num_prefill must be at least 1, not 0"):
        loads(0, 1, NodeShape())
    with pytest.raises(ConfigError, match="num_decode must be at least 1, not 0"):
        loads(1, 0, NodeShape())

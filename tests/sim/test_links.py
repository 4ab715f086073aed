"""Links against closed forms: everything else in the simulator rests on them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sim.fair_link import FairLink, Traffic

from dualpath.core.ids import NodeId
from dualpath.sim.engines.fifo_link import ComputeNic, FifoLink
from dualpath.sim.engines.node import Node, Staging, StorageNic

GAPS = st.lists(st.tuples(st.floats(0, 10), st.integers(1, 1000)), min_size=1, max_size=20)


def ends(link: FairLink) -> list[tuple[float, object]]:
    """Let everything end."""
    found = []
    while (end_s := link.next_end_s()) < math.inf:
        found += [(end_s, name) for name in link.finish(end_s)]
    return found


# -- first come, first served -----------------------------------------------------------------------------------------


def test_transfers_that_come_together_end_one_after_the_other() -> None:
    link = FifoLink(100.0)
    assert [link.send(1.0, 50), link.send(1.0, 100), link.send(10.0, 100)] == [1.5, 2.5, 11.0]
    assert link.num_bytes == 250
    assert link.busy_s == 2.5


def test_an_infinite_link_takes_no_time() -> None:
    link = FifoLink(math.inf)
    assert link.send(3.0, 10**12) == 3.0
    assert link.busy_s == 0


@given(GAPS)
def test_a_fifo_link_never_idles_while_somebody_waits(arrivals: list[tuple[float, int]]) -> None:
    """Lindley's recursion, and the work never runs faster than the link."""
    link, now_s, end_s = FifoLink(100.0), 0.0, 0.0
    for gap_s, num_bytes in arrivals:
        now_s += gap_s
        end_s = max(end_s, now_s) + num_bytes / 100.0
        assert link.send(now_s, num_bytes) == pytest.approx(end_s)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 1000), st.integers(0, 1000)), max_size=20))
def test_a_nic_is_two_links(transfers: list[tuple[float, int, int]]) -> None:
    nic, out, into, now_s = ComputeNic(100.0), FifoLink(100.0), FifoLink(100.0), 0.0
    for gap_s, out_bytes, into_bytes in transfers:
        now_s += gap_s
        expected = [now_s]
        expected += [out.send(now_s, out_bytes)] if out_bytes else []
        expected += [into.send(now_s, into_bytes)] if into_bytes else []
        assert nic.send(now_s, out_bytes, into_bytes) == max(expected)
    assert (nic.out.num_bytes, nic.into.num_bytes) == (out.num_bytes, into.num_bytes)


# -- fair -------------------------------------------------------------------------------------------------------------


def test_equal_flows_share_equally() -> None:
    link = FairLink(100.0)
    for name in "abcd":
        link.start(0.0, 100, Traffic.KV, name)
    assert ends(link) == [(pytest.approx(4.0), name) for name in "abcd"]


def test_a_short_flow_leaves_its_share_to_the_rest() -> None:
    """Three flows of 30, 60 and 90 bytes: each gets a third, then a half, then all."""
    link = FairLink(90.0)
    for num_bytes in (90, 30, 60):
        link.start(0.0, num_bytes, Traffic.KV, num_bytes)
    assert ends(link) == [(pytest.approx(1.0), 30), (pytest.approx(1 + 60 / 90), 60), (pytest.approx(2.0), 90)]


def test_a_late_flow_halves_what_is_left() -> None:
    link = FairLink(100.0)
    link.start(0.0, 200, Traffic.KV, "early")
    link.start(1.0, 50, Traffic.KV, "late")
    assert ends(link) == [(pytest.approx(2.0), "late"), (pytest.approx(2.5), "early")]


def test_model_traffic_comes_first_and_kv_never_starves() -> None:
    """KV gets 1 % for the 1 / .99 s in which 99 bytes of model traffic pass, then everything."""
    link = FairLink(100.0, model_share=0.99)
    link.start(0.0, 100, Traffic.KV, "kv")
    link.start(0.0, 99, Traffic.MODEL, "model")
    assert ends(link) == [(pytest.approx(1.0), "model"), (pytest.approx(1.99), "kv")]


def test_each_class_may_use_all_of_an_idle_link() -> None:
    for traffic in Traffic:
        link = FairLink(100.0)
        link.start(5.0, 100, traffic, "one")
        assert link.next_end_s() == pytest.approx(6.0)


@given(GAPS, st.lists(st.sampled_from(Traffic), min_size=20, max_size=20))
def test_a_fair_link_conserves_work(arrivals: list[tuple[float, int]], classes: list[Traffic]) -> None:
    """Whoever gets what first: the last flow ends when a first-come-first-served link would have done the same work."""
    fair, fifo, now_s, found = FairLink(100.0), FifoLink(100.0), 0.0, 0
    for index, (gap_s, num_bytes) in enumerate(arrivals):
        now_s += gap_s
        while fair.next_end_s() <= now_s:
            found += len(fair.finish(fair.next_end_s()))
        fair.start(now_s, num_bytes, classes[index], index)
        last_s = fifo.send(now_s, num_bytes)
    ended = ends(fair)
    assert found + len(ended) == len(arrivals)
    assert ended[-1][0] == pytest.approx(last_s)


def test_time_does_not_go_back() -> None:
    link = FairLink(1.0)
    link.start(2.0, 1, Traffic.KV, "a")
    with pytest.raises(ValueError, match="back"):
        link.finish(1.0)


# -- a node -----------------------------------------------------------------------------------------------------------


def test_the_reading_queue_counts_what_is_planned_until_it_is_read() -> None:
    nic = StorageNic(100.0, window_s=1.0)
    nic.queued_tokens += 10
    nic.queued_tokens += 20
    assert nic.queue_tokens(0.0) == 30
    assert [nic.read(0.0, 150, 10), nic.read(0.0, 100, 20)] == [1.5, 2.5]
    assert [nic.queue_tokens(now_s) for now_s in (1.4, 1.5, 2.4, 2.5)] == [30, 20, 20, 0]
    assert nic.windows == [0, 150, 100]


def test_a_write_takes_memory_bandwidth_and_the_way_out() -> None:
    node = Node(NodeId("n"), StorageNic(100.0, 1.0), FifoLink(100.0), FifoLink(1000.0), Staging(1))
    assert [node.store(0.0, 100), node.store(0.5, 100)] == [1.0, 2.0]
    assert (node.dram.num_bytes, node.store_writes.num_bytes, node.snic.num_bytes) == (200, 200, 0)

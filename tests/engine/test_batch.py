"""Packing a prefill batch: order, memory, chunking."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dualpath.engine.batch import BatchLimits, Chunk, ReadyItem, pack

LIMITS = BatchLimits(max_new_tokens=100, workspace_blocks=20, block_tokens=16)


def test_requests_are_packed_in_order_at_block_boundaries():
    chunks = pack([ReadyItem(32, 10), ReadyItem(0, 20)], LIMITS)
    assert chunks == [Chunk(0, 10, 0), Chunk(1, 20, 3)]


def test_the_request_that_exceeds_the_token_limit_is_chunked_and_ends_the_batch():
    chunks = pack([ReadyItem(0, 60), ReadyItem(0, 60), ReadyItem(0, 1)], LIMITS)
    assert chunks == [Chunk(0, 60, 0), Chunk(1, 40, 4)]


def test_memory_chunks_too():
    assert pack([ReadyItem(300, 50)], LIMITS) == [Chunk(0, 20, 0)]


def test_a_history_that_does_not_fit_is_not_started():
    assert pack([ReadyItem(320, 1)], LIMITS) == []


def test_quota_can_cut_and_stop():
    def half(chosen, num_cached, wanted):
        return 0 if chosen else wanted // 2

    assert pack([ReadyItem(0, 40), ReadyItem(0, 4)], LIMITS, half) == [Chunk(0, 20, 0)]


def test_nobody_passes_a_request_that_the_quota_cuts():
    def short_ones_only(chosen, num_cached, wanted):
        return min(wanted, 10)

    assert pack([ReadyItem(0, 40), ReadyItem(0, 4)], LIMITS, short_ones_only) == [Chunk(0, 10, 0)]


items = st.lists(st.builds(ReadyItem, st.integers(0, 400), st.integers(1, 200)), max_size=12)


@given(items, st.integers(1, 300), st.integers(1, 40), st.one_of(st.none(), st.integers(1, 4)))
def test_no_limit_is_ever_exceeded_and_nobody_is_overtaken(ready, max_new_tokens, blocks, max_requests):
    limits = BatchLimits(max_new_tokens, blocks, 16, max_requests)
    chunks = pack(ready, limits)
    assert [c.index for c in chunks] == list(range(len(chunks)))
    assert sum(c.num_new for c in chunks) <= max_new_tokens
    end = 0
    for chunk in chunks:
        assert chunk.first_block == end
        assert 1 <= chunk.num_new <= ready[chunk.index].num_new
        end += -(-(ready[chunk.index].num_cached + chunk.num_new) // 16)
    assert end <= blocks
    assert all(c.num_new == ready[c.index].num_new for c in chunks[:-1])
    if ready and ready[0].num_cached < blocks * 16:
        assert chunks

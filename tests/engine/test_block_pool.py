"""The device block pool: nothing twice, nothing lost, runs where possible."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualpath.core.geometry import KvGeometry
from dualpath.engine.block_pool import BlockPool, device_units

GEOMETRY = KvGeometry(num_layers=2, block_tokens=4, bytes_per_token_layer=8)


def make(num_blocks: int) -> BlockPool:
    return BlockPool(GEOMETRY, num_blocks, torch.device("cpu"))


def test_blocks_come_in_runs_and_grow_in_place():
    pool = make(8)
    first = pool.allocate(3)
    assert first == [0, 1, 2]
    assert pool.allocate(1, after=2) == [3]
    pool.free([0, 1])
    assert pool.allocate(3) == [4, 5, 6]  # not 0, 1, 7: a run exists
    assert pool.allocate(2) == [0, 1]


def test_exhaustion_is_an_answer_and_changes_nothing():
    pool = make(2)
    assert pool.allocate(3) is None
    assert pool.num_free == 2


def test_freeing_twice_is_refused():
    pool = make(2)
    blocks = pool.allocate(1)
    pool.free(blocks)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free(blocks)


def test_units_of_a_block_are_its_layers():
    assert device_units([3, 1], GEOMETRY).tolist() == [6, 7, 2, 3]


@given(st.lists(st.integers(1, 5), max_size=40), st.randoms())
def test_no_block_is_handed_out_twice(sizes, random):
    pool, held = make(12), []
    for size in sizes:
        blocks = pool.allocate(size)
        if blocks is None:
            if held:
                pool.free(held.pop(random.randrange(len(held))))
            continue
        held.append(blocks)
        used = [b for bs in held for b in bs]
        assert len(used) == len(set(used)) == pool.num_used
        pool.check_integrity()

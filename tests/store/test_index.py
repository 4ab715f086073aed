"""The index against a model that recomputes everything from plain sets, and its waiting and rebuilding."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.store.blocks import GEOMETRY, NAMESPACE, OBJECT_BYTES, block_bytes, key_of

from dualpath.core.ids import BlockKey
from dualpath.core.runtime import SystemRuntime
from dualpath.store.header import object_bytes
from dualpath.store.index import BlockIndex, BlockState
from dualpath.store.memory import MemoryStore
from dualpath.store.parents import learn_parents

NUM_KEYS = 12
SIZE_BYTES = 10
numbers = st.integers(0, NUM_KEYS - 1)


def parent_number(number: int) -> int | None:
    """A fixed tree: chains 0-1-2-3-4 and 5-6-7, and branches of them."""
    return [None, 0, 1, 2, 3, None, 5, 6, 1, 8, 5, 10][number]


def chain_to(number: int) -> list[BlockKey]:
    parent = parent_number(number)
    return [*(chain_to(parent) if parent is not None else []), key_of(number)]


class IndexMachine(RuleBasedStateMachine):
    """Every operation in any order, against the plainest possible bookkeeping."""

    @initialize()
    def start(self) -> None:
        self.index = BlockIndex(SIZE_BYTES)
        self.states: dict[int, BlockState] = {}
        self.uses: dict[int, int] = {}  # number of the last use
        self.num_uses = 0
        self.pins: Counter[int] = Counter()
        self.lost: set[int] = set()  # gone, with children that have been here ever since
        self.useless: set[int] = set()  # on storage, under its name, unless it is written again

    def use(self, number: int) -> None:
        self.num_uses += 1
        self.uses[number] = self.num_uses

    @property
    def order(self) -> list[int]:
        """Least recently used first."""
        return sorted(self.states, key=self.uses.__getitem__)

    def children(self, number: int) -> list[int]:
        return [child for child in self.states if parent_number(child) == number]

    def drop(self, number: int) -> None:
        """What was used with it counts as used then."""
        del self.states[number]
        parent = parent_number(number)
        if parent in self.states:
            self.uses[parent] = max(self.uses[parent], self.uses[number])
        self.lost = {other for other in self.lost if self.children(other)}

    def lose(self, number: int) -> None:
        self.drop(number)
        if self.children(number):
            self.lost.add(number)

    def is_cut_off(self, number: int) -> bool:
        parent = parent_number(number)
        if parent is None:
            return False
        return self.is_cut_off(parent) if parent in self.states else parent in self.lost

    @rule(number=numbers)
    def begin_write(self, number: int) -> None:
        parent = parent_number(number)
        is_new = self.index.begin_write(key_of(number), None if parent is None else key_of(parent))
        assert is_new == (number not in self.states)
        if is_new:
            self.states[number] = BlockState.WRITING
            self.lost.discard(number)
            self.use(number)

    @rule(number=numbers)
    def store_chain(self, number: int) -> None:
        """The common case: a whole chain is written, from its first block on."""
        chain = [number]
        while (parent := parent_number(chain[0])) is not None:
            chain.insert(0, parent)
        for member in chain:
            self.begin_write(member)
            self.index.publish(key_of(member))
            self.states[member] = BlockState.STORED

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.states)))
        self.index.publish(key_of(number))
        self.states[number] = BlockState.STORED

    @rule(number=numbers)
    def fail_write(self, number: int) -> None:
        self.index.fail_write(key_of(number))
        if self.states.get(number) is BlockState.WRITING:
            self.lose(number)

    @rule(number=numbers)
    def forget(self, number: int) -> None:
        self.index.forget(key_of(number))
        if number in self.states:
            self.useless.add(number)
            self.lose(number)

    @rule(max_blocks=st.integers(1, 3), can_delete=st.booleans())
    def delete_useless(self, max_blocks: int, can_delete: bool) -> None:
        taken = self.index.take_useless(max_blocks)
        expected = self.useless - self.states.keys()
        assert len(taken) == min(max_blocks, len(expected))
        assert set(taken) <= {key_of(number) for number in expected}
        self.index.deleted(taken)
        if can_delete:
            self.useless = {number for number in self.useless if key_of(number) not in taken}
        else:
            self.index.leave(taken)

    @rule(number=numbers)
    def touch(self, number: int) -> None:
        self.index.touch(key_of(number))
        if number in self.states:
            self.use(number)

    @rule(number=numbers)
    def pin(self, number: int) -> None:
        self.index.pin(key_of(number))
        self.pins[number] += 1

    @precondition(lambda self: +self.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(+self.pins)))
        self.index.unpin(key_of(number))
        self.pins[number] -= 1

    @rule(num_dropped=st.integers(0, 4))
    def evict(self, num_dropped: int) -> None:
        num_blocks = max(0, len(self.states) - num_dropped)
        expected = []
        while len(self.states) > num_blocks:
            leaves = [
                number
                for number in self.order
                if self.states[number] is BlockState.STORED and not self.children(number) and not self.pins[number]
            ]
            if not leaves:
                break
            expected.append(next((leaf for leaf in leaves if self.is_cut_off(leaf)), leaves[0]))
            self.drop(expected[-1])
        evicted = self.index.evict_to((num_blocks + self.index.num_useless()) * SIZE_BYTES)
        assert evicted == [key_of(number) for number in expected]
        self.index.deleted(evicted)

    @rule(number=numbers)
    def match(self, number: int) -> None:
        known = [key_of(other) for other in self.states]
        keys = chain_to(number)
        expected = next((i for i, key in enumerate(keys) if key not in known), len(keys))
        assert self.index.match(keys) == expected

    @invariant()
    def holds_together(self) -> None:
        if hasattr(self, "index"):
            self.index.check_integrity()
            stored = {number for number in self.states if self.states[number] is BlockState.STORED}
            self.useless -= stored
            assert self.index.used_bytes() == len(self.states.keys() | self.useless) * SIZE_BYTES


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=80, stateful_step_count=40)


def test_a_use_after_it_became_a_leaf_saves_a_block() -> None:
    index = BlockIndex(SIZE_BYTES)
    for number in range(3):
        index.begin_write(key_of(number), None)
        index.publish(key_of(number))
    index.touch(key_of(0))
    assert index.evict_to(SIZE_BYTES) == [key_of(1), key_of(2)]


def chain_of(num_blocks: int) -> tuple[BlockIndex, list[BlockKey]]:
    """A stored chain."""
    index, keys = BlockIndex(SIZE_BYTES), [key_of(number) for number in range(num_blocks)]
    for key, parent in zip(keys, [None, *keys], strict=False):
        index.begin_write(key, parent)
        index.publish(key)
    return index, keys


def test_the_end_of_a_chain_keeps_and_uses_all_before_it() -> None:
    index, keys = chain_of(3)
    other = key_of(-1)
    index.begin_write(other, None)
    index.publish(other)  # used last
    index.pin(keys[-1])
    assert index.evict_to(0) == [other], "nothing of the chain may go"
    index.deleted([other])
    index.begin_write(other, None)
    index.publish(other)
    index.unpin(keys[-1])
    index.touch(keys[-1])
    assert index.evict_to(SIZE_BYTES) == [other, keys[2], keys[1]], "the first block was used with the last one"


def test_an_eviction_can_be_done_in_slices() -> None:
    index, keys = chain_of(10)
    assert index.evict_to(2 * SIZE_BYTES, 3) == keys[:6:-1]
    index.check_integrity()
    assert index.match(keys) == 7
    assert index.evict_to(2 * SIZE_BYTES, 100) == keys[6:1:-1]
    assert index.evict_to(2 * SIZE_BYTES, 100) == []


def test_a_slice_looks_at_a_few_entries_only() -> None:
    """Of a chain only the end may go, though every block was the end once."""
    index, keys = chain_of(1000)
    num_entries = len(index._queue._heap)
    assert num_entries > 900
    num_calls = 0
    while not (evicted := index.evict_to(0, 4)):
        assert index.may_evict()
        num_calls += 1
        assert num_entries - len(index._queue._heap) <= 64 * num_calls
        index.check_integrity()
    assert evicted == keys[:-5:-1]
    assert num_calls > 10


def test_no_call_visits_more_than_a_few_of_the_blocks_behind_a_lost_one() -> None:
    """And what is left to visit changes nothing but the order of eviction, which puts it right before it chooses."""
    index, keys = chain_of(3000)
    index.begin_write(key_of(-1), None)
    index.publish(key_of(-1))  # a chain of its own, used last
    index.forget(keys[0])
    num_visited = sum(node.is_unreachable for node in index._nodes.values())
    assert 0 < num_visited < 100
    assert index.match(keys) == 0
    index.touch(keys[-1])
    while not index.tidy(100):
        num_before, num_visited = num_visited, sum(node.is_unreachable for node in index._nodes.values())
        assert num_visited - num_before <= 100
    index.check_integrity()
    assert index.evict_to(2999 * SIZE_BYTES, 1) == keys[:-2:-1], "cut off, though used last"


def test_what_is_left_to_visit_is_visited_before_the_next_block_is_chosen() -> None:
    index, keys = chain_of(100)
    index.begin_write(key_of(-1), None)
    index.publish(key_of(-1))
    index.touch(keys[-1])
    index.forget(keys[0])
    assert index.evict_to(99 * SIZE_BYTES, 1) == keys[:-2:-1], "cut off, though used last"


def test_stale_entries_of_the_eviction_queue_do_not_pile_up() -> None:
    """Blocks that are lost and come back leave an entry each time; nothing is evicted meanwhile."""
    index, keys = chain_of(200)
    for _ in range(50):
        for key in keys[-10:]:
            index.forget(key)
            index.begin_write(key, keys[keys.index(key) - 1])
            index.publish(key)
    assert len(index._queue._heap) < 3 * len(keys)
    index.check_integrity()
    assert index.evict_to(0) == keys[::-1]


def stored(store: MemoryStore, *blocks: int) -> None:
    for number in blocks:
        store.put_raw(key_of(number), block_bytes(number))


async def test_rebuild_lists_and_parents_come_later() -> None:
    store = MemoryStore("memory://rebuild", NAMESPACE, GEOMETRY)
    stored(store, 0, 1, 2, 3)
    store.put_raw(key_of(9), b"torn")
    index = BlockIndex(object_bytes(GEOMETRY))
    index.rebuild(store)
    assert index.match([key_of(i) for i in range(6)]) == 4
    assert index.unknown_parents(10) == []  # the match told them

    index.rebuild(store)
    assert index.used_bytes() == 5 * OBJECT_BYTES
    assert index.take_useless(10) == [key_of(9)]
    damaged = bytearray(block_bytes(2))
    damaged[100] ^= 1
    store.put_raw(key_of(2), bytes(damaged))
    assert len(index.unknown_parents(10)) == 4
    await learn_parents(index, store, SystemRuntime(), batch_blocks=2)
    assert index.used_bytes() == 4 * OBJECT_BYTES
    assert index.take_useless(10) == [key_of(2)]
    index.check_integrity()
    assert index.unknown_parents(10) == []
    assert index.match([key_of(i) for i in range(6)]) == 2
    assert index.evict_to(OBJECT_BYTES) == [key_of(3), key_of(1)]  # block 3 cannot be reached any more


async def test_leaves_go_first_after_a_restart_too() -> None:
    store = MemoryStore("memory://leaves", NAMESPACE, GEOMETRY)
    stored(store, 0, 1, 2, 3)
    index = BlockIndex(object_bytes(GEOMETRY))
    index.rebuild(store)
    await learn_parents(index, store, SystemRuntime())
    assert index.evict_to(2 * OBJECT_BYTES) == [key_of(3), key_of(2)]


async def test_waiting_ends_with_the_last_publish_a_failure_or_the_time() -> None:
    index = BlockIndex(SIZE_BYTES)
    keys = [key_of(i) for i in range(3)]
    for i, key in enumerate(keys):
        index.begin_write(key, keys[i - 1] if i else None)
    waits = [asyncio.ensure_future(index.wait_durable(keys, 5.0)) for _ in range(2)]
    await asyncio.sleep(0)
    index.publish(keys[1])
    index.publish(keys[0])
    await asyncio.sleep(0)
    assert not waits[0].done()
    assert await index.wait_durable(keys, 0.01) == 2
    index.publish(keys[2])
    assert await asyncio.gather(*waits) == [3, 3]

    index.begin_write(key_of(3), keys[2])
    failing = asyncio.ensure_future(index.wait_durable([*keys, key_of(3)], 5.0))
    await asyncio.sleep(0)
    index.fail_write(key_of(3))
    assert await failing == 3
    assert await index.wait_durable([key_of(99)], 5.0) == 0


async def test_who_has_waited_in_vain_leaves_nothing_that_waits_on() -> None:
    index = BlockIndex(SIZE_BYTES)
    index.begin_write(key_of(0), None)
    assert await index.wait_durable([key_of(0)], 0.01) == 0
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_a_block_published_after_it_was_given_up_is_known() -> None:
    index = BlockIndex(SIZE_BYTES)
    index.begin_write(key_of(1), None)
    index.fail_write(key_of(1))
    index.publish(key_of(1))
    assert index.state(key_of(1)) is BlockState.STORED
    index.check_integrity()


def test_rebuilding_while_blocks_are_in_use_is_refused() -> None:
    index = BlockIndex(object_bytes(GEOMETRY))
    index.begin_write(key_of(1), None)
    with pytest.raises(RuntimeError, match="in use"):
        index.rebuild(MemoryStore("memory://busy", NAMESPACE, GEOMETRY))

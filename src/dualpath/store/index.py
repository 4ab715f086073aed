"""Which blocks exist: prefix matches, blocks on their way to storage, pins, and leaf-first LRU eviction, all in memory.

Lives in the scheduler's process, on its event loop; never blocks and touches no storage itself but in ``rebuild``.
What it says may be behind storage: a block it knows can be gone (the read fails; ``forget`` it), one it does not know
is recomputed.

Only leaves are evicted, the least recently used first, so that a prefix is never cut in the middle. Blocks behind a
block that was lost cannot be matched any more and go before all others. After ``rebuild`` parents are not known, as
reading every header would take too long: ``match`` teaches them in passing, and dualpath.store.parents reads the rest
in the background. Until then a block of unknown parent counts as the first of a chain.

Cost: O(1) per key, but evicting is O(log n) per block, and losing or restoring a block in mid-chain visits what lies
behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from dualpath.core.ids import BlockKey
from dualpath.core.runtime import Clock, SystemRuntime
from dualpath.store.contract import BlockStore
from dualpath.store.eviction import BlockState, EvictionQueue, Node
from dualpath.store.header import object_bytes

__all__ = ["BlockIndex", "BlockState"]


class BlockIndex:
    """All methods from one event loop; only ``wait_durable`` waits."""

    def __init__(self, object_bytes: int, clock: Clock | None = None) -> None:
        self.object_bytes = object_bytes
        self._clock = clock or SystemRuntime()
        self._nodes: dict[BlockKey, Node] = {}
        self._children: dict[BlockKey, set[BlockKey]] = {}  # also of blocks that are not here (any more, or yet)
        self._lost: set[BlockKey] = set()  # blocks that went while they had children
        self._pins: dict[BlockKey, int] = {}
        self._unknown: dict[BlockKey, None] = {}  # blocks whose parent is not known
        self._waiters: dict[BlockKey, asyncio.Event] = {}  # one per block being written that somebody waits for
        self._num_uses = 0
        self._queue = EvictionQueue(self._nodes, self._is_evictable)

    def rebuild(self, store: BlockStore) -> list[BlockKey]:
        """Start over from storage, by listing. Returns objects of a wrong size, which are not taken: delete them.

        Blocks; call it before serving starts. The oldest file counts as least recently used.
        """
        if self._pins or any(node.state is BlockState.WRITING for node in self._nodes.values()):
            raise RuntimeError("rebuild while blocks are in use")
        assert self.object_bytes == object_bytes(store.geometry)
        found = sorted(store.list_blocks(), key=lambda block: block.modified_unix_s)
        for table in (self._nodes, self._children, self._lost, self._unknown):
            table.clear()
        self._queue.clear()
        damaged = []
        for block in found:
            if block.num_bytes == self.object_bytes:
                self._add(block.key, BlockState.STORED)
            else:
                damaged.append(block.key)
        return damaged

    def __len__(self) -> int:
        return len(self._nodes)

    def match(self, keys: Sequence[BlockKey]) -> int:
        """How many leading blocks of a whole chain are stored or being written. Does not count as a use."""
        for i, key in enumerate(keys):
            node = self._nodes.get(key)
            if node is None:
                return i
            if not node.is_parent_known:
                self._set_parent(node, keys[i - 1] if i else None)
        return len(keys)

    def begin_write(self, key: BlockKey, parent: BlockKey | None) -> bool:
        """Announce a block. True: the caller is its writer and ends with ``publish`` or ``fail_write``; False: known
        already.

        ``parent`` is None, or any key that is no block, for the first of a chain.
        """
        if key in self._nodes:
            return False
        self._set_parent(self._add(key, BlockState.WRITING), parent)
        return True

    def publish(self, key: BlockKey) -> None:
        """The block is durable. Publishing twice, or a block that was given up meanwhile, only says that it is
        there.
        """
        node = self._nodes.get(key)
        if node is None:
            node = self._add(key, BlockState.STORED)
        node.state = BlockState.STORED
        self._wake(key)
        self._queue.offer(node)

    def fail_write(self, key: BlockKey) -> None:
        """The write came to nothing. A block that is stored by now stays."""
        node = self._nodes.get(key)
        if node is not None and node.state is BlockState.WRITING:
            self._lose(node)

    def forget(self, key: BlockKey) -> None:
        """The block is missing or corrupt on storage. Pins stay with whoever holds them; unknown keys are fine."""
        node = self._nodes.get(key)
        if node is not None:
            self._lose(node)

    async def wait_durable(self, keys: Sequence[BlockKey], timeout_s: float) -> int:
        """Wait until every leading block is stored, one is not going to be, or the time is up. How many are stored."""
        deadline_s = self._clock.now_s() + timeout_s
        num_stored = 0
        while num_stored < len(keys):
            node = self._nodes.get(keys[num_stored])
            if node is None:
                break
            if node.state is BlockState.STORED:
                num_stored += 1
                continue
            left_s = deadline_s - self._clock.now_s()
            if left_s <= 0:
                break
            await self._wait(keys[num_stored], left_s)
        return num_stored

    def pin(self, keys: Iterable[BlockKey]) -> None:
        """Keep these from eviction while they are read. Counted; needs not be known blocks."""
        for key in keys:
            self._pins[key] = self._pins.get(key, 0) + 1

    def unpin(self, keys: Iterable[BlockKey]) -> None:
        for key in keys:
            num_pins = self._pins[key] - 1
            if num_pins:
                self._pins[key] = num_pins
                continue
            del self._pins[key]
            if key in self._nodes:
                self._queue.offer(self._nodes[key])

    def touch(self, keys: Iterable[BlockKey]) -> None:
        """Count as used now, the first least recently."""
        for key in keys:
            node = self._nodes.get(key)
            if node is not None:
                self._num_uses += 1
                node.last_use = self._num_uses

    def evict_to(self, capacity_bytes: int) -> list[BlockKey]:
        """Drop blocks until the rest fits, and return them for deletion. Fewer where pins and writes do not allow
        more.
        """
        evicted = []
        while self.used_bytes() > capacity_bytes:
            node = self._queue.pop()
            if node is None:
                break
            self._remove(node)
            evicted.append(node.key)
        return evicted

    def used_bytes(self) -> int:
        """Bytes stored and about to be."""
        return len(self._nodes) * self.object_bytes

    def num_blocks(self) -> int:
        return len(self._nodes)

    def state(self, key: BlockKey) -> BlockState | None:
        """None: not known."""
        node = self._nodes.get(key)
        return None if node is None else node.state

    def unknown_parents(self, max_keys: int) -> list[BlockKey]:
        """Some of the blocks whose parent ``learn_parent`` should be told."""
        return [key for key, _ in zip(self._unknown, range(max_keys), strict=False)]

    def learn_parent(self, key: BlockKey, parent: BlockKey | None) -> None:
        """What a block's header says. Ignored where it is known already or the block is gone."""
        node = self._nodes.get(key)
        if node is not None and not node.is_parent_known:
            self._set_parent(node, parent)

    def check_integrity(self) -> None:
        """Raise AssertionError where the tables contradict each other. O(n): for tests."""
        for parent, children in self._children.items():
            assert children, "an empty set of children is kept"
            assert all(self._nodes[child].parent == parent for child in children)
        num_links = sum(len(children) for children in self._children.values())
        assert num_links == sum(node.parent is not None for node in self._nodes.values())
        assert self._lost.isdisjoint(self._nodes)
        assert self._lost <= self._children.keys()
        assert set(self._unknown) == {key for key, node in self._nodes.items() if not node.is_parent_known}
        assert all(num_pins > 0 for num_pins in self._pins.values())
        for key, node in self._nodes.items():
            assert node.key == key
            assert node.is_unreachable == self._is_cut_off(node.parent), "reachability is stale"
        self._queue.check_integrity()

    def _add(self, key: BlockKey, state: BlockState) -> Node:
        """A new block of unknown parent. Its children, if any were here before it, are attached again."""
        self._num_uses += 1
        node = self._nodes[key] = Node(key, state, self._num_uses)
        self._unknown[key] = None
        if key in self._lost:
            self._lost.discard(key)
            self._mark_behind(key, is_unreachable=False)
        self._queue.offer(node)
        return node

    def _set_parent(self, node: Node, parent: BlockKey | None) -> None:
        node.parent, node.is_parent_known = parent, True
        del self._unknown[node.key]
        if parent is None:
            return
        self._children.setdefault(parent, set()).add(node.key)
        if self._is_cut_off(parent):
            node.is_unreachable = True
            self._mark_behind(node.key, is_unreachable=True)

    def _is_cut_off(self, parent: BlockKey | None) -> bool:
        if parent is None:
            return False
        node = self._nodes.get(parent)
        return parent in self._lost if node is None else node.is_unreachable

    def _mark_behind(self, key: BlockKey, *, is_unreachable: bool) -> None:
        """Blocks behind a lost one are cut off, or no longer."""
        todo = list(self._children.get(key, ()))
        while todo:
            node = self._nodes[todo.pop()]
            if node.is_unreachable != is_unreachable:
                node.is_unreachable = is_unreachable
                self._queue.offer_again(node)
                todo.extend(self._children.get(node.key, ()))

    def _lose(self, node: Node) -> None:
        self._remove(node)
        if node.key in self._children:
            self._lost.add(node.key)
            self._mark_behind(node.key, is_unreachable=True)

    def _remove(self, node: Node) -> None:
        del self._nodes[node.key]
        self._unknown.pop(node.key, None)
        self._wake(node.key)
        if node.parent is None:
            return
        siblings = self._children[node.parent]
        siblings.discard(node.key)
        if siblings:
            return
        del self._children[node.parent]
        self._lost.discard(node.parent)
        if node.parent in self._nodes:
            self._queue.offer(self._nodes[node.parent])

    def _is_evictable(self, node: Node) -> bool:
        is_leaf = node.key not in self._children
        return is_leaf and node.state is BlockState.STORED and node.key not in self._pins

    def _wake(self, key: BlockKey) -> None:
        waiter = self._waiters.pop(key, None)
        if waiter is not None:
            waiter.set()

    async def _wait(self, key: BlockKey, timeout_s: float) -> None:
        event = self._waiters.setdefault(key, asyncio.Event())
        ended = asyncio.ensure_future(event.wait())
        timer = asyncio.ensure_future(self._clock.sleep_s(timeout_s))
        try:
            await asyncio.wait((ended, timer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            timer.cancel()

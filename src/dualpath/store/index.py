"""Which blocks exist: prefix matches, blocks on their way to storage, pins, and leaf-first LRU eviction, all in memory.

Lives in the scheduler's process, on its event loop; never blocks and touches no storage itself but in ``rebuild``.

A block that is STORED here is on storage, unless somebody else deleted it (then the read fails; ``forget`` it). For
that the index knows what goes from there (dualpath.store.departures): a block that is written while it is deleted
counts as being written until storage was asked whether it is there (``doubts``, ``settle``). One that is on storage
and not known here is recomputed.

It holds blocks of several namespaces, whose keys never meet: those of weights that requests do not use any more go
before those in use. Only leaves are evicted, the least recently used first, so that a prefix is never cut in the
middle. Blocks behind a block that was lost cannot be matched any more and go before all others. After ``rebuild``
parents are not known, as reading every header would take too long: ``match`` teaches them in passing, and
dualpath.store.parents reads the rest in the background. Until then a block of unknown parent counts as the first of a
chain.

Cost: O(1) per key, but evicting is O(log n) per block. Losing or restoring a block in mid-chain concerns whatever lies
behind it: that is worked off a little with every call (``tidy``), and matters for the order of eviction only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from dualpath.core.eviction_queue import EvictionQueue, Shelf
from dualpath.core.ids import BlockKey
from dualpath.core.runtime import Clock, SystemRuntime
from dualpath.store.chains import Chains
from dualpath.store.contract import BlockStore, StoredBlock
from dualpath.store.deletions import Deletions
from dualpath.store.departures import Departures
from dualpath.store.header import object_bytes
from dualpath.store.node import BlockState, Node

__all__ = ["BlockIndex", "BlockState", "Shelf"]

_TIDIED_PER_EVICTION = 128
_ENTRIES_PER_BLOCK = 16


class BlockIndex:
    """All methods from one event loop; only ``wait_durable`` waits."""

    def __init__(self, object_bytes: int, clock: Clock | None = None, namespace_digest: bytes = b"") -> None:
        self.object_bytes = object_bytes
        self.shelf = Shelf(namespace_digest, 0)  # of the namespace that requests use now
        self._shelves = {namespace_digest: self.shelf}
        self._clock = clock or SystemRuntime()
        self._nodes: dict[BlockKey, Node] = {}
        self._pins: dict[BlockKey, int] = {}
        self._unknown: dict[BlockKey, None] = {}  # blocks whose parent is not known
        self._writing: dict[BlockKey, None] = {}  # blocks on their way to storage
        self._waiters: dict[BlockKey, asyncio.Event] = {}  # one per block being written that somebody waits for
        self._deletions = Deletions()
        self._departures = Departures(self._deletions)
        self.num_listed = 0  # objects that ``rebuild`` has found so far
        self.num_failed_writes = 0
        self._num_uses = 0
        self._queue = EvictionQueue(self._nodes, self._is_evictable)
        self._chains = Chains(self._nodes, self._queue.offer_again)

    def rebuild(self, store: BlockStore) -> None:
        """Start over from storage, by listing. Objects of a wrong size are not taken, and to be deleted.

        Blocks; call it before serving starts. The oldest file counts as least recently used.
        """
        if self._pins or any(node.state is BlockState.WRITING for node in self._nodes.values()):
            raise RuntimeError("rebuild while blocks are in use")
        assert self.object_bytes == object_bytes(store.geometry)
        found = []
        for block in store.list_blocks():
            found.append(block)
            self.num_listed += 1
        found.sort(key=lambda block: block.modified_unix_s)
        for table in (self._nodes, self._writing, self._unknown):
            table.clear()
        self._departures.clear()
        self._chains.clear()
        self._queue.clear()
        for block in found:
            self._take(block, self.shelf)

    def use_namespace(self, namespace_digest: bytes) -> None:
        """What is written from now on belongs to it, unless its writer says otherwise; all others go before it."""
        shelf = self._shelves.setdefault(namespace_digest, Shelf(namespace_digest, 0))
        if shelf is not self.shelf:
            shelf.use_after(self.shelf)
            self.shelf = shelf

    def knows_namespace(self, namespace_digest: bytes) -> bool:
        return namespace_digest in self._shelves

    def adopt(self, namespace_digest: bytes, blocks: Iterable[StoredBlock]) -> None:
        """Blocks that were found on storage while we are used. Those that are known already stay as they are."""
        shelf = self._shelves.setdefault(namespace_digest, Shelf(namespace_digest, 0))
        for block in blocks:
            if block.key not in self._nodes and self._departures.shelf_of(block.key) is None:
                self._take(block, shelf)

    def namespace_of(self, key: BlockKey) -> bytes:
        """Of a block that is known, or about to be deleted; else the one that requests use. Any thread."""
        node = self._nodes.get(key)
        shelf = node.shelf if node is not None else self._departures.shelf_of(key)
        return (shelf or self.shelf).namespace_digest

    def _take(self, block: StoredBlock, shelf: Shelf) -> None:
        if block.num_bytes == self.object_bytes:
            self._add(block.key, BlockState.STORED, shelf)
        else:
            self._departures.condemn(block.key, shelf)

    def __len__(self) -> int:
        return len(self._nodes)

    def match(self, keys: Sequence[BlockKey]) -> int:
        """How many leading blocks of a whole chain are stored or being written. Does not count as a use."""
        num_known = self._num_known(keys)
        if self._unknown:
            for i in range(num_known):
                if keys[i] in self._unknown:
                    self._set_parent(self._nodes[keys[i]], keys[i - 1] if i else None)
        return num_known

    def _num_known(self, keys: Sequence[BlockKey]) -> int:
        """Leading ones. No Python step for each key: a prompt has hundreds."""
        nodes = self._nodes
        if all(map(nodes.__contains__, keys)):
            return len(keys)
        return next(i for i, is_known in enumerate(map(nodes.__contains__, keys)) if not is_known)

    def begin_write(self, key: BlockKey, parent: BlockKey | None, shelf: Shelf | None = None) -> bool:
        """Announce a block. True: the caller is its writer and ends with ``publish`` or ``fail_write``; False: known
        already. ``shelf``: the one that requests used when its writer began.

        ``parent`` is None, or any key that is no block, for the first of a chain.
        """
        if key in self._nodes:
            return False
        self._set_parent(self._add(key, BlockState.WRITING, shelf), parent)
        return True

    def publish(self, key: BlockKey, shelf: Shelf | None = None, *, is_doubted: bool = False) -> None:
        """Its writer says that the block is stored. It may be said twice, or of a block that was given up meanwhile.

        Where a deletion may have come after the write, or the caller doubts it, it goes on being written until
        ``settle``.
        """
        node = self._nodes.get(key)
        if node is None:
            node = self._add(key, BlockState.WRITING, shelf)
        if node.state is BlockState.STORED:
            return
        if is_doubted or self._deletions.is_in_doubt(key):
            self._departures.doubt(key)
        else:
            self._store(node)

    def fail_write(self, key: BlockKey) -> None:
        """The write came to nothing. A block that is stored by now, or was said to be, stays."""
        self.num_failed_writes += 1
        node = self._nodes.get(key)
        if node is not None and node.state is BlockState.WRITING and not self._departures.is_doubted(key):
            self._remove(node)

    def forget(self, key: BlockKey) -> None:
        """The block is missing or corrupt on storage. Pins stay with whoever holds them; unknown keys are fine."""
        node = self._nodes.get(key)
        if node is not None:
            node.is_replacing = True
            self._remove(node)

    async def wait_durable(self, keys: Sequence[BlockKey], timeout_s: float) -> int:
        """Wait until every leading block is stored, one is not going to be, or the time is up. How many are stored."""
        deadline_s = self._clock.now_s() + timeout_s
        if self._writing.keys().isdisjoint(keys):
            return self._num_known(keys)
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

    def pin(self, key: BlockKey) -> None:
        """Keep a block from eviction, and with it all before it: only leaves go. Counted; it needs not be known."""
        self._pins[key] = self._pins.get(key, 0) + 1

    def unpin(self, key: BlockKey) -> None:
        num_pins = self._pins[key] - 1
        if num_pins:
            self._pins[key] = num_pins
            return
        del self._pins[key]
        if key in self._nodes:
            self._queue.offer(self._nodes[key])

    def touch(self, key: BlockKey) -> None:
        """Count a block as used now, and with it all before it: a block is used after those behind it (``_remove``)."""
        node = self._nodes.get(key)
        if node is not None:
            self._num_uses += 1
            node.last_use = self._num_uses

    def evict_to(self, capacity_bytes: float, max_blocks: int | None = None) -> list[BlockKey]:
        """Drop blocks until the rest fits, at most ``max_blocks``, and return them for deletion: say ``deleted``.

        With ``max_blocks`` the work is bounded, too, so there may be fewer, or none, while ``may_evict``.
        """
        self._chains.tidy(_TIDIED_PER_EVICTION)
        evicted: list[BlockKey] = []
        num_entries = 0
        while self.used_bytes() > capacity_bytes and self.may_evict() and len(evicted) != max_blocks:
            if max_blocks is not None and num_entries == _ENTRIES_PER_BLOCK * max_blocks:
                break
            num_entries += 1
            node = self._queue.take()
            if node is not None:
                self._remove(node)
                self._deletions.begin(node.key, node.shelf)
                evicted.append(node.key)
        return evicted

    def may_evict(self) -> bool:
        """False: pins and writes do not allow any more."""
        return not self._queue.is_empty

    def num_useless(self) -> int:
        """Objects to be deleted."""
        return self._departures.num_useless()

    def take_useless(self, max_blocks: int) -> list[BlockKey]:
        """Some of those, for deletion: say ``deleted``, and ``leave`` what could not be."""
        return self._departures.take_useless(max_blocks)

    def leave(self, keys: Iterable[BlockKey]) -> None:
        """These are of no use, and still on storage."""
        for key in keys:
            node = self._nodes.get(key)
            if node is None:
                self._departures.condemn(key, self._deletions.shelf_of(key) or self.shelf)
            elif node.state is BlockState.WRITING:
                node.is_replacing = True

    def deleted(self, keys: Iterable[BlockKey]) -> None:
        """Storage has answered to the deletion of these, whatever it said: nothing deletes them any more."""
        self._deletions.end(keys)

    def open_writer(self) -> int:
        """Before anything is written that may be published: what is deleted from now on is remembered for it."""
        return self._deletions.open_writer()

    def close_writer(self, writer: int) -> None:
        """It publishes nothing any more."""
        self._deletions.close_writer(writer)

    def doubts(self, max_keys: int) -> list[BlockKey]:
        """Blocks about which to ask storage now; tell ``settle`` of each what it says."""
        return self._departures.ask(max_keys)

    def settle(self, key: BlockKey, *, is_stored: bool) -> None:
        """What storage says about a doubt. A no is void where the block was published again since it was asked."""
        if not self._departures.answer(key):
            return  # forgotten meanwhile
        if is_stored:
            self._store(self._nodes[key])
        elif not self._departures.is_doubted(key):
            self._remove(self._nodes[key])

    def tidy(self, max_blocks: int) -> bool:
        """Work off some of what blocks that were lost or came back have changed behind them. False: there is more."""
        return self._chains.tidy(max_blocks)

    def used_bytes(self) -> int:
        """Bytes stored, about to be, and to be deleted."""
        return (len(self._nodes) + self._departures.num_useless()) * self.object_bytes

    def num_blocks(self) -> int:
        return len(self._nodes)

    def num_pins(self) -> int:
        return len(self._pins)

    def known(self) -> list[BlockKey]:
        return list(self._nodes)

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
        self._chains.check_integrity()
        assert set(self._unknown) == {key for key, node in self._nodes.items() if not node.is_parent_known}
        assert all(num_pins > 0 for num_pins in self._pins.values())
        assert set(self._writing) == {n.key for n in self._nodes.values() if n.state is BlockState.WRITING}
        for key, node in self._nodes.items():
            assert node.key == key
            assert node.state is BlockState.WRITING or not self._deletions.is_under_way(key), "stored and being deleted"
        self._departures.check_integrity(self._nodes, self._writing)
        self._queue.check_integrity()

    def check_agrees(self, store: BlockStore) -> None:
        """Raise AssertionError where a block that is STORED here is not on storage. For tests where only we delete."""
        there = {block.key for block in store.list_blocks()}
        missing = [
            node.key.hex() for node in self._nodes.values() if node.state is BlockState.STORED and node.key not in there
        ]
        assert not missing, f"{len(missing)} blocks are stored by the index and not on storage: {missing[:3]}"

    def _add(self, key: BlockKey, state: BlockState, shelf: Shelf | None = None) -> Node:
        """A new block of unknown parent. Its children, if any were here before it, are attached again."""
        self._num_uses += 1
        shelf = shelf or self._deletions.shelf_of(key) or self.shelf
        node = self._nodes[key] = Node(key, state, self._num_uses, shelf)
        if state is BlockState.WRITING:
            self._writing[key] = None
        node.is_replacing = self._departures.replace(key)
        self._unknown[key] = None
        self._chains.add(node)
        self._queue.offer(node)
        return node

    def _store(self, node: Node) -> None:
        node.state, node.is_replacing = BlockState.STORED, False
        self._writing.pop(node.key, None)
        self._departures.end_doubt(node.key)
        self._wake(node.key)
        self._queue.offer(node)

    def _set_parent(self, node: Node, parent: BlockKey | None) -> None:
        del self._unknown[node.key]
        self._chains.set_parent(node, parent)

    def _remove(self, node: Node) -> None:
        del self._nodes[node.key]
        self._writing.pop(node.key, None)
        self._unknown.pop(node.key, None)
        self._departures.end_doubt(node.key)
        if node.is_replacing:
            self._departures.condemn(node.key, node.shelf)
        self._wake(node.key)
        if node.parent is not None and (before := self._nodes.get(node.parent)) is not None:
            before.last_use = max(before.last_use, node.last_use)  # whoever used the one used the other
        parent = self._chains.remove(node)
        if parent is not None:
            self._queue.offer(parent)

    def _is_evictable(self, node: Node) -> bool:
        return self._chains.is_leaf(node.key) and node.state is BlockState.STORED and node.key not in self._pins

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

"""The order in which blocks are evicted, in the live index (``BlockIndex.evict_to``) and in the simulator: a heap.

An entry carries the last use of its block, and its shelf's rank, when it was pushed. Using them only moves it back, so
a stale entry comes up too early, never too late: it is put back at its right place then. Each such correction is paid
for by a use.
Where stale entries outnumber blocks, a fresh heap is filled beside the old one, a few blocks with each push.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from dualpath.core.ids import BlockKey

_REFILLED_PER_PUSH = 4
_Entry = tuple[bool, int, int, BlockKey]


@dataclass(slots=True, eq=False)
class Shelf:
    """The blocks of one namespace. Its rank grows whenever requests begin to use it."""

    namespace_digest: bytes
    rank: int

    def use_after(self, used: Shelf) -> None:
        """Requests use it from now on; those of ``used``, which they have used until now, go before it."""
        self.rank = used.rank + 1


class Evictable(Protocol):
    """A block, or several that go one after the other."""

    key: BlockKey
    shelf: Shelf
    last_use: int
    is_unreachable: bool  # some block before it was lost
    is_queued: bool  # the queue's own


N = TypeVar("N", bound=Evictable)


class EvictionQueue(Generic[N]):
    """Blocks that may go: unreachable ones first, then those of the shelf that requests have not used for longest, then
    the least recently used. Reads ``nodes``, which its owner changes.
    """

    def __init__(self, nodes: Mapping[BlockKey, N], is_evictable: Callable[[N], bool]) -> None:
        self._nodes = nodes
        self._is_evictable = is_evictable
        self._heap: list[_Entry] = []
        self._fresh: list[_Entry] | None = None  # takes the place of the heap once it has every block
        self._to_refill: list[BlockKey] = []

    def clear(self) -> None:
        self._heap.clear()
        self._fresh = None

    def offer(self, node: N) -> None:
        """Tell that ``node`` may have become evictable."""
        if not node.is_queued and self._is_evictable(node):
            self._push(node)

    def offer_again(self, node: N) -> None:
        """Tell that the reachability of ``node`` changed: an entry that it may have is of the wrong class."""
        node.is_queued = False
        self.offer(node)

    @property
    def is_empty(self) -> bool:
        """Nothing may go."""
        return not self._heap

    def take(self) -> N | None:
        """Look at the first entry. The block to evict next, which the caller removes from ``nodes`` or offers again; or
        None: the entry was out of date.
        """
        entry = heapq.heappop(self._heap)
        node = self._nodes.get(entry[-1])
        if node is None:
            return None
        if not self._is_evictable(node):
            node.is_queued = False  # comes back when it is offered
        elif entry != _entry(node):
            self._push(node)
        else:
            node.is_queued = False
            return node
        return None

    def check_integrity(self) -> None:
        """Raise AssertionError where an evictable block would be overlooked or come up too late."""
        first: dict[BlockKey, _Entry] = {}
        for entry in self._heap:
            first[entry[-1]] = min(entry, first.get(entry[-1], entry))
        for node in self._nodes.values():
            if self._is_evictable(node):
                assert node.is_queued, f"{node.key.hex()} is evictable and not queued"
                assert first[node.key] <= _entry(node), "comes up too late"

    def _push(self, node: N) -> None:
        node.is_queued = True
        entry = _entry(node)
        heapq.heappush(self._heap, entry)
        if self._fresh is not None:
            heapq.heappush(self._fresh, entry)
            self._refill(self._fresh)
        elif len(self._heap) > 2 * len(self._nodes) + 64:
            self._fresh, self._to_refill = [], list(self._nodes)

    def _refill(self, fresh: list[_Entry]) -> None:
        """Blocks pushed since the fresh heap was begun are in both; here come the others."""
        for key in self._to_refill[-_REFILLED_PER_PUSH:]:
            node = self._nodes.get(key)
            if node is not None:
                node.is_queued = self._is_evictable(node)
                if node.is_queued:
                    heapq.heappush(fresh, _entry(node))
        del self._to_refill[-_REFILLED_PER_PUSH:]
        if not self._to_refill:
            self._heap, self._fresh = fresh, None


def _entry(node: Evictable) -> _Entry:
    return (not node.is_unreachable, node.shelf.rank, node.last_use, node.key)

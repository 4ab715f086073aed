"""Which leaf goes next: a heap of eviction candidates that a use does not have to touch.

An entry carries the last use of its block when it was pushed. Using a block only moves it back, so a stale entry
comes up too early, never too late: it is put back at its right place then. Each such correction is paid for by a use.
Where stale entries outnumber blocks, a fresh heap is filled beside the old one, a few blocks with each push.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from dualpath.core.ids import BlockKey

_REFILLED_PER_PUSH = 4
_Entry = tuple[bool, int, BlockKey]


class BlockState(Enum):
    WRITING = "writing"
    STORED = "stored"


@dataclass(slots=True, eq=False)
class Node:
    """What the index knows of one block."""

    key: BlockKey
    state: BlockState
    last_use: int
    parent: BlockKey | None = None  # None: first of its chain, or not known yet
    is_parent_known: bool = False
    is_unreachable: bool = False  # some block before it was lost
    is_queued: bool = False


class EvictionQueue:
    """Blocks that may go, unreachable ones first, then the least recently used. Reads ``nodes``, which its owner
    changes.
    """

    def __init__(self, nodes: Mapping[BlockKey, Node], is_evictable: Callable[[Node], bool]) -> None:
        self._nodes = nodes
        self._is_evictable = is_evictable
        self._heap: list[_Entry] = []
        self._fresh: list[_Entry] | None = None  # takes the place of the heap once it has every block
        self._to_refill: list[BlockKey] = []

    def clear(self) -> None:
        self._heap.clear()
        self._fresh = None

    def offer(self, node: Node) -> None:
        """Tell that ``node`` may have become evictable."""
        if not node.is_queued and self._is_evictable(node):
            self._push(node)

    def offer_again(self, node: Node) -> None:
        """Tell that the reachability of ``node`` changed: an entry that it may have is of the wrong class."""
        node.is_queued = False
        self.offer(node)

    @property
    def is_empty(self) -> bool:
        """Nothing may go."""
        return not self._heap

    def take(self) -> Node | None:
        """Look at the first entry. The block to evict next, which the caller removes from ``nodes``; or None: the entry
        was out of date.
        """
        entry = heapq.heappop(self._heap)
        node = self._nodes.get(entry[2])
        if node is None:
            return None
        if not self._is_evictable(node):
            node.is_queued = False  # comes back when it is offered
        elif entry != _entry(node):
            self._push(node)
        else:
            return node
        return None

    def check_integrity(self) -> None:
        """Raise AssertionError where an evictable block would be overlooked or come up too late."""
        first: dict[BlockKey, _Entry] = {}
        for entry in self._heap:
            first[entry[2]] = min(entry, first.get(entry[2], entry))
        for node in self._nodes.values():
            if self._is_evictable(node):
                assert node.is_queued, f"{node.key.hex()} is evictable and not queued"
                assert first[node.key] <= _entry(node), "comes up too late"

    def _push(self, node: Node) -> None:
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


def _entry(node: Node) -> _Entry:
    return (not node.is_unreachable, node.last_use, node.key)

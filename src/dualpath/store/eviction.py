"""Which leaf goes next: a heap of eviction candidates that a use does not have to touch.

An entry carries the last use of its block when it was pushed. Using a block only moves it back, so a stale entry
comes up too early, never too late: it is put back at its right place then. Each such correction is paid for by a use.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from dualpath.core.ids import BlockKey


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
        self._heap: list[tuple[bool, int, BlockKey]] = []

    def clear(self) -> None:
        self._heap.clear()

    def offer(self, node: Node) -> None:
        """Tell that ``node`` may have become evictable."""
        if not node.is_queued and self._is_evictable(node):
            self._push(node)

    def offer_again(self, node: Node) -> None:
        """Tell that the reachability of ``node`` changed: an entry that it may have is of the wrong class."""
        node.is_queued = False
        self.offer(node)

    def pop(self) -> Node | None:
        """Take the block to evict next; None where nothing may go. The caller removes it from ``nodes``."""
        while self._heap:
            entry = heapq.heappop(self._heap)
            node = self._nodes.get(entry[2])
            if node is None:
                continue
            if not self._is_evictable(node):
                node.is_queued = False  # comes back when it is offered
            elif entry != _entry(node):
                self._push(node)
            else:
                return node
        return None

    def check_integrity(self) -> None:
        """Raise AssertionError where an evictable block would be overlooked or come up too late."""
        entries = set(self._heap)
        for node in self._nodes.values():
            if self._is_evictable(node):
                assert node.is_queued, f"{node.key.hex()} is evictable and not queued"
                assert any(e <= _entry(node) for e in entries if e[2] == node.key), "comes up too late"

    def _push(self, node: Node) -> None:
        node.is_queued = True
        heapq.heappush(self._heap, _entry(node))
        if len(self._heap) > 2 * len(self._nodes) + 64:
            self._drop_stale_entries()

    def _drop_stale_entries(self) -> None:
        """Linear, after at least as many pushes."""
        self._heap.clear()
        for node in self._nodes.values():
            node.is_queued = self._is_evictable(node)
            if node.is_queued:
                self._heap.append(_entry(node))
        heapq.heapify(self._heap)


def _entry(node: Node) -> tuple[bool, int, BlockKey]:
    return (not node.is_unreachable, node.last_use, node.key)

"""Which block continues which, and which cannot be reached any more because one before it was lost.

What is lost or comes back concerns everything behind it, which may be a hundred thousand blocks: that is worked off a
little at a time (``tidy``). Until then some blocks count as reachable that are not, or the other way round.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from dualpath.core.ids import BlockKey
from dualpath.store.node import Node

_TIDIED_PER_CALL = 16


class Chains:
    """Links between ``nodes``, which its owner changes: ``add`` after, ``remove`` and ``lose`` after as well."""

    def __init__(self, nodes: Mapping[BlockKey, Node], on_flip: Callable[[Node], None]) -> None:
        self._nodes = nodes
        self._on_flip = on_flip  # a node became reachable, or no longer is
        self._children: dict[BlockKey, dict[BlockKey, None]] = {}  # also of blocks not here (any more, or yet)
        self._lost: dict[BlockKey, None] = {}  # blocks that went while they had children
        self._to_tidy: deque[BlockKey] = deque()  # blocks whose reachability may have changed

    def clear(self) -> None:
        for table in (self._children, self._lost, self._to_tidy):
            table.clear()

    def is_leaf(self, key: BlockKey) -> bool:
        return key not in self._children

    def add(self, node: Node) -> None:
        """A block is here, its parent not known. Its children, if any were before it, are attached again."""
        if node.key in self._lost:
            del self._lost[node.key]
            self._tidy_behind(node.key)

    def set_parent(self, node: Node, parent: BlockKey | None) -> None:
        node.parent, node.is_parent_known = parent, True
        if parent is None:
            return
        self._children.setdefault(parent, {})[node.key] = None
        if self._is_cut_off(parent):
            node.is_unreachable = True
            self._on_flip(node)
            self._tidy_behind(node.key)

    def remove(self, node: Node) -> Node | None:
        """A block is gone. Returns its parent where that has become a leaf by it."""
        if node.key in self._children:
            self._lost[node.key] = None
            self._tidy_behind(node.key)
        if node.parent is None:
            return None
        siblings = self._children[node.parent]
        del siblings[node.key]
        if siblings:
            return None
        del self._children[node.parent]
        self._lost.pop(node.parent, None)
        return self._nodes.get(node.parent)

    def tidy(self, max_blocks: int) -> bool:
        """Look again at blocks behind those that were lost or came back. False: there is more to do."""
        for _ in range(max_blocks):
            if not self._to_tidy:
                break
            node = self._nodes.get(self._to_tidy.popleft())
            if node is not None and node.is_unreachable != self._is_cut_off(node.parent):
                node.is_unreachable = not node.is_unreachable
                self._on_flip(node)
                self._to_tidy.extend(self._children.get(node.key, ()))
        return not self._to_tidy

    def check_integrity(self) -> None:
        """Raise AssertionError where the links contradict each other. O(n): for tests."""
        while not self.tidy(1):
            pass
        for parent, children in self._children.items():
            assert children, "an empty set of children is kept"
            assert all(self._nodes[child].parent == parent for child in children)
        num_links = sum(len(children) for children in self._children.values())
        assert num_links == sum(node.parent is not None for node in self._nodes.values())
        assert self._lost.keys().isdisjoint(self._nodes)
        assert self._lost.keys() <= self._children.keys()
        for node in self._nodes.values():
            assert node.is_unreachable == self._is_cut_off(node.parent), "reachability is stale"

    def _is_cut_off(self, parent: BlockKey | None) -> bool:
        if parent is None:
            return False
        node = self._nodes.get(parent)
        return parent in self._lost if node is None else node.is_unreachable

    def _tidy_behind(self, key: BlockKey) -> None:
        self._to_tidy.extend(self._children.get(key, ()))
        self.tidy(_TIDIED_PER_CALL)

"""What goes from storage, or may be gone: objects of no use, and blocks that were said to be stored while deleted."""

from __future__ import annotations

from collections.abc import Container
from itertools import islice

from dualpath.core.eviction_queue import Shelf
from dualpath.core.ids import BlockKey
from dualpath.store.deletions import Deletions

__all__ = ["Departures"]


class Departures:
    """Bookkeeping only. An object of no use is no block of the index; a block in doubt is one that is being written."""

    def __init__(self, deletions: Deletions) -> None:
        self._deletions = deletions
        self._useless: dict[BlockKey, Shelf] = {}  # on storage, maybe, and to be deleted
        self._doubts: dict[BlockKey, None] = {}  # said to be stored, while they may have been deleted
        self._asked: dict[BlockKey, None] = {}  # doubts about which storage is being asked

    def clear(self) -> None:
        """Forget all but the deletions, which go on."""
        for table in (self._useless, self._doubts, self._asked):
            table.clear()

    def condemn(self, key: BlockKey, shelf: Shelf) -> None:
        """There may be an object of this name, and it is of no use."""
        self._useless[key] = shelf

    def replace(self, key: BlockKey) -> bool:
        """A block of this name comes. True: an object of no use may be in its place, and is not to be deleted now."""
        return self._useless.pop(key, None) is not None

    def shelf_of(self, key: BlockKey) -> Shelf | None:
        """Of an object that is to be deleted, or is being deleted. None: it is neither. Any thread."""
        return self._useless.get(key) or self._deletions.shelf_of(key)

    def num_useless(self) -> int:
        return len(self._useless)

    def take_useless(self, max_keys: int) -> list[BlockKey]:
        """Some objects of no use, whose deletion begins."""
        keys = list(islice(self._useless, max_keys))
        for key in keys:
            self._deletions.begin(key, self._useless.pop(key))
        return keys

    def doubt(self, key: BlockKey) -> None:
        """It was said to be stored, and may have been deleted since."""
        self._doubts[key] = None

    def is_doubted(self, key: BlockKey) -> bool:
        return key in self._doubts or key in self._asked

    def end_doubt(self, key: BlockKey) -> None:
        """It is stored, or no block any more."""
        self._doubts.pop(key, None)
        self._asked.pop(key, None)

    def ask(self, max_keys: int) -> list[BlockKey]:
        """Some blocks in doubt that nothing deletes now: ask storage, and ``answer``."""
        keys = list(islice((key for key in self._doubts if not self._deletions.is_under_way(key)), max_keys))
        for key in keys:
            del self._doubts[key]
            self._asked[key] = None
        return keys

    def answer(self, key: BlockKey) -> bool:
        """Storage has answered about it. False: nobody asks any more. It may be in doubt again (``is_doubted``)."""
        if key not in self._asked:
            return False
        del self._asked[key]
        return True

    def check_integrity(self, known: Container[BlockKey], writing: Container[BlockKey]) -> None:
        """Raise AssertionError where the tables contradict the index's, of its blocks and of those being written."""
        assert all(key in writing for key in (*self._doubts, *self._asked))
        assert not any(key in known for key in self._useless), "counted twice"

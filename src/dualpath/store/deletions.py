"""Which blocks may have been deleted behind a writer's back, so that news of their being stored is not to be believed.

Engines write without asking, and the news of a write comes after the write. A deletion that was under way at any moment
since a writer began may have taken what it wrote. So deletions are remembered until every writer that began before
their end has ended; with too many to remember, everything that those writers say is in doubt.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from dualpath.core.eviction_queue import Shelf
from dualpath.core.ids import BlockKey

MAX_REMEMBERED = 1 << 17


class Deletions:
    """Bookkeeping only; a writer is whoever may report blocks as stored."""

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        self._max_remembered = max_remembered
        # how many: a slow one may be overtaken by the next of its block; and where the latest is
        self._under_way: dict[BlockKey, tuple[int, Shelf]] = {}
        self._ended: OrderedDict[BlockKey, int] = OrderedDict()  # how many writers had begun then; oldest first
        self._num_begun = 0
        self._writers: dict[int, None] = {}  # by number, in order
        self._num_distrusted = 0  # writers below this number: a deletion that concerns them was not remembered

    def open_writer(self) -> int:
        """Before anything is written in its name. Returns its number, for ``close_writer``."""
        self._writers[self._num_begun] = None
        self._num_begun += 1
        return self._num_begun - 1

    def close_writer(self, number: int) -> None:
        """It reports nothing any more."""
        self._writers.pop(number, None)
        self._drop_settled()

    def begin(self, key: BlockKey, shelf: Shelf) -> None:
        found = self._under_way.get(key)
        self._under_way[key] = (1 if found is None else found[0] + 1, shelf)

    def end(self, keys: Iterable[BlockKey]) -> None:
        """Storage has answered, whatever it said."""
        for key in keys:
            found = self._under_way.pop(key, None)
            if found is not None and found[0] > 1:
                self._under_way[key] = (found[0] - 1, found[1])
            self._ended.pop(key, None)
            self._ended[key] = self._num_begun
        self._drop_settled()
        while len(self._ended) > self._max_remembered:
            self._num_distrusted = self._ended.popitem(last=False)[1]

    def is_under_way(self, key: BlockKey) -> bool:
        return key in self._under_way

    def shelf_of(self, key: BlockKey) -> Shelf | None:
        """None: it is not being deleted."""
        found = self._under_way.get(key)
        return None if found is None else found[1]

    def is_in_doubt(self, key: BlockKey) -> bool:
        """May it have been deleted after a writer that still reports has written it?"""
        return key in self._under_way or key in self._ended or self._oldest_writer() < self._num_distrusted

    def _oldest_writer(self) -> int:
        return next(iter(self._writers), self._num_begun)

    def _drop_settled(self) -> None:
        oldest = self._oldest_writer()
        while self._ended and next(iter(self._ended.values())) <= oldest:
            self._ended.popitem(last=False)

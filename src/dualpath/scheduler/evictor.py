"""Keeps the block store below its capacity: the index chooses what goes, the objects are deleted off the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from dualpath.core.ids import BlockKey
from dualpath.scheduler.blocks import IndexView
from dualpath.store.contract import BlockStore

_log = logging.getLogger(__name__)


class Evictor:
    """One patrol task; woken whenever blocks were published."""

    def __init__(self, index: IndexView, store: BlockStore, capacity_bytes: int | None) -> None:
        self._index = index
        self._store = store
        self._capacity_bytes = capacity_bytes
        self._due = asyncio.Event()

    def wake(self) -> None:
        if self._capacity_bytes is not None:
            self._due.set()

    async def run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            await self.evict()

    async def evict(self) -> int:
        """Evict now. Returns how many blocks went. An object that cannot be deleted is left to ``store gc``."""
        if self._capacity_bytes is None:
            return 0
        keys = self._index.evict_to(self._capacity_bytes)
        if keys:
            await asyncio.to_thread(self._delete, keys)
        return len(keys)

    def _delete(self, keys: Sequence[BlockKey]) -> None:
        for key in keys:
            try:
                self._store.delete(key)
            except Exception as error:  # whatever it is, the next blocks must go, and the ones after them
                _log.warning("evicted block %s stays on storage: %r", key.hex(), error)

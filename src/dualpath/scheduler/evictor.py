"""Keeps the block store below its capacity, makes room where it is full, and asks it about blocks that are in doubt.

The index chooses what goes, a little at a time; objects are deleted beside the event loop. Capacity is a number of
bytes, or a share of what the file system holds for us and has free: that moves when others fill it. Where writes fail
all the same (a quota, others' data), a write of our own tells whether storage takes any; if it is full, some blocks
go, less and less often as long as that does not help, and what is left is a bound that grows slowly.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from dualpath.core.errors import StoreError, StoreFullError
from dualpath.core.ids import BlockKey
from dualpath.core.runtime import Runtime, SystemRuntime
from dualpath.core.stats import StoreStats
from dualpath.scheduler.blocks import IndexView
from dualpath.store.contract import BlockStore
from dualpath.store.directory_calls import DirectoryCalls

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0
_SHORT_PAUSE_S, _MAX_PAUSE_S = 1.0, 300.0  # before storage is tried again
_KEYS_PER_CALL = 16
_SHARE_FREED = 0.1  # of our blocks, when storage is full
_GROWTH_PER_LOOK = 1.001  # of the bound that this leaves: storage is full again after nine minutes at the earliest


class Evictor:
    """One patrol task; woken whenever blocks were published. Event loop only."""

    def __init__(
        self,
        index: IndexView,
        store: BlockStore,
        capacity_bytes: int | None,
        runtime: Runtime | None = None,
        *,
        capacity_fraction: float | None = None,
    ) -> None:
        self._index = index
        self._store = store
        self._runtime = runtime or SystemRuntime()
        self._capacity_bytes = capacity_bytes
        self._capacity_fraction = None if capacity_bytes is not None else capacity_fraction
        self._free_bytes: int | None = None
        self._full_at_bytes = math.inf  # less than what was too much for storage
        self._calls = DirectoryCalls(self._runtime)
        self._due = asyncio.Event()
        self._turn = asyncio.Lock()
        self._next_look_s = self._next_try_s = 0.0
        self._pause_s = _SHORT_PAUSE_S
        self._num_failures_seen = 0
        self._refusal: StoreError | None = None
        self._since_unix_s = self._runtime.unix_s()

    def wake(self) -> None:
        self._due.set()

    @property
    def stats(self) -> StoreStats:
        return StoreStats(
            accepts_writes=self._refusal is None,
            reason="" if self._refusal is None else str(self._refusal),
            since_unix_s=self._since_unix_s,
            used_bytes=self._index.used_bytes(),
            capacity_bytes=None if math.isinf(bound := self._bound_bytes()) else int(bound),
            free_bytes=self._free_bytes,
            stalled_s=self._calls.stalled_s,
        )

    async def run(self) -> None:
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await self._due.wait()
                self._due.clear()
                try:
                    await self.evict()
                except Exception:  # a bug; the next round must come all the same
                    _log.exception("eviction")
        finally:
            self._calls.close()

    async def evict(self) -> int:
        """One round. Returns how many blocks went. An object that cannot be deleted is left to ``store gc``."""
        async with self._turn:
            return await self._evict()

    async def _evict(self) -> int:
        num_evicted = 0
        try:
            await self._measure()
            num_evicted += await self._evict_to(self._bound_bytes())
            num_evicted += await self._make_room()
            await self._ask_about_doubts()
        except StoreError as error:
            _log.warning("the store's directory: %s", error)
        while not self._index.tidy(_KEYS_PER_CALL):
            await self._runtime.sleep_s(0)
        return num_evicted

    async def _measure(self) -> None:
        """Our share of the file system, now."""
        if self._runtime.now_s() < self._next_look_s:
            return
        self._next_look_s = self._runtime.now_s() + _LOOK_EVERY_S
        self._full_at_bytes *= _GROWTH_PER_LOOK
        if self._capacity_fraction is None:
            return
        self._free_bytes = await self._calls.call(self._store.free_bytes)
        if self._free_bytes is not None:
            self._capacity_bytes = int(self._capacity_fraction * (self._index.used_bytes() + self._free_bytes))

    def _bound_bytes(self) -> float:
        return min(self._full_at_bytes, math.inf if self._capacity_bytes is None else self._capacity_bytes)

    async def _evict_to(self, capacity_bytes: float) -> int:
        """A few blocks at a time: meanwhile others have the event loop, and storage sets the pace."""
        num_evicted = 0
        deletions: list[asyncio.Future[None]] = []
        while self._index.used_bytes() > capacity_bytes:
            await self._calls.room()
            keys = self._index.evict_to(capacity_bytes, _KEYS_PER_CALL)
            if not keys and not self._index.may_evict():
                break
            if not keys:
                await self._runtime.sleep_s(0)
                continue
            num_evicted += len(keys)
            deletions = [deletion for deletion in deletions if not deletion.done()]
            deletions.append(self._calls.begin(self._delete, keys))
            deletions[-1].add_done_callback(partial(self._deleted, keys))
        for deletion in deletions:
            if not deletion.done():
                await self._calls.wait(deletion)
        return num_evicted

    def _delete(self, keys: Sequence[BlockKey]) -> None:
        errors = []
        for key in keys:
            try:
                self._store.delete(key)
            except Exception as error:  # whatever it is, the next blocks must go, and the ones after them
                errors.append(error)
        if errors:
            _log.warning("%d of %d evicted blocks stay on storage: %r", len(errors), len(keys), errors[0])

    def _deleted(self, keys: Sequence[BlockKey], _: asyncio.Future[None]) -> None:
        self._index.deleted(keys)
        self.wake()  # for what was in doubt until now

    async def _make_room(self) -> int:
        """Where writes have failed since the last time: does storage take any? If it is full, some of ours go."""
        has_failures = self._index.num_failed_writes != self._num_failures_seen
        if self._runtime.now_s() < self._next_try_s or not (has_failures or self._refusal):
            return 0
        self._num_failures_seen = self._index.num_failed_writes
        num_evicted = 0
        if isinstance(await self._try_write(), StoreFullError):
            self._full_at_bytes = (1 - _SHARE_FREED) * self._index.used_bytes()
            num_evicted = await self._evict_to(self._full_at_bytes)
            await self._try_write()
        if isinstance(self._refusal, StoreFullError):
            self._pause_s = min(max(2 * self._pause_s, 2 * _LOOK_EVERY_S), _MAX_PAUSE_S)
        else:
            self._pause_s = _SHORT_PAUSE_S if self._refusal is None else _LOOK_EVERY_S
        self._next_try_s = self._runtime.now_s() + self._pause_s
        return num_evicted

    async def _try_write(self) -> StoreError | None:
        refusal: StoreError | None = None
        try:
            await self._calls.call(self._store.try_write)
        except StoreError as error:
            refusal = error
        if (refusal is None) != (self._refusal is None):
            self._since_unix_s = self._runtime.unix_s()
            _log.warning("storage takes writes again" if refusal is None else f"storage takes no writes: {refusal}")
        self._refusal = refusal
        return refusal

    async def _ask_about_doubts(self) -> None:
        """Blocks written while they were being deleted: are they there?"""
        while keys := self._index.doubts(_KEYS_PER_CALL):
            there: Sequence[BlockKey] = ()
            try:
                there = await self._calls.call(self._which_exist, keys)
            finally:
                for key in keys:
                    self._index.settle(key, is_stored=key in there)

    def _which_exist(self, keys: Sequence[BlockKey]) -> list[BlockKey]:
        return [key for key in keys if self._exists(key)]

    def _exists(self, key: BlockKey) -> bool:
        try:
            return self._store.exists(key)
        except StoreError:
            return False

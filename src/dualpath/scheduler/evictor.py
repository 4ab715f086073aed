"""Evicts blocks where the store is over its capacity or full, and has what is of no use deleted.

The index chooses what goes, a little at a time; objects are deleted beside the event loop. Capacity is a number of
bytes, or a share of what the file system holds for us and has free: that moves when others fill it. Where writes fail
all the same (a quota, others' data), a write of our own tells whether storage takes any; if it is full, some blocks
go, less and less often as long as that does not help, and what is left is a bound that grows slowly.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from dualpath.core.errors import StoreError, StoreFullError
from dualpath.core.ids import BlockKey
from dualpath.core.runtime import Runtime, SystemRuntime
from dualpath.core.stats import StoreStats
from dualpath.scheduler.blocks import IndexView
from dualpath.store.contract import BlockDirectory
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
        store: BlockDirectory,
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
        self._num_stayed, self._next_deletion_s = 0, -math.inf  # blocks that could not be deleted
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
        """One round. Returns how many blocks went. One that cannot be deleted stays a hit, and is tried later."""
        async with self._turn:
            return await self._evict()

    async def _evict(self) -> int:
        num_evicted = 0
        try:
            if self._runtime.now_s() >= self._next_look_s:
                self._next_look_s = self._runtime.now_s() + _LOOK_EVERY_S
                await self._measure()
                await self._delete_useless()
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
        self._full_at_bytes = max(
            self._full_at_bytes * _GROWTH_PER_LOOK, self._full_at_bytes + self._index.object_bytes
        )
        if self._capacity_fraction is None:
            return
        self._free_bytes = await self._calls.call(self._store.free_bytes)
        if self._free_bytes is not None:
            self._capacity_bytes = int(self._capacity_fraction * (self._index.used_bytes() + self._free_bytes))

    def _bound_bytes(self) -> float:
        return min(self._full_at_bytes, math.inf if self._capacity_bytes is None else self._capacity_bytes)

    async def _evict_to(self, capacity_bytes: float) -> int:
        """A few blocks at a time: meanwhile others have the event loop, and storage sets the pace."""
        num_evicted, num_stayed = 0, self._num_stayed
        deletions: list[asyncio.Future[list[BlockKey]]] = []
        while self._index.used_bytes() > capacity_bytes and self._runtime.now_s() >= self._next_deletion_s:
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
        await self._until_deleted(deletions)
        return num_evicted - (self._num_stayed - num_stayed)

    async def _delete_useless(self) -> None:
        """Each once; what stays is tried again with the next look."""
        deletions: list[asyncio.Future[list[BlockKey]]] = []
        for _ in range(-(-self._index.num_useless() // _KEYS_PER_CALL)):
            await self._calls.room()
            keys = self._index.take_useless(_KEYS_PER_CALL)
            if not keys:  # written anew meanwhile
                break
            deletions.append(self._calls.begin(self._delete, keys))
            deletions[-1].add_done_callback(partial(self._deleted_useless, keys))
        await self._until_deleted(deletions)

    async def _until_deleted(self, deletions: Sequence[asyncio.Future[list[BlockKey]]]) -> None:
        for deletion in deletions:
            if not deletion.done():
                await self._calls.wait(deletion)

    def _delete(self, keys: Sequence[BlockKey]) -> list[BlockKey]:
        """Returns those that stay."""
        errors = {}
        for key in keys:
            try:
                self._store.delete(key)
            except Exception as error:  # whatever it is, the next blocks must go, and the ones after them
                errors[key] = error
        if errors:
            first = next(iter(errors.values()))
            _log.warning("%d of %d blocks cannot be deleted from storage: %r", len(errors), len(keys), first)
        return list(errors)

    def _deleted_useless(self, keys: Sequence[BlockKey], deletion: asyncio.Future[list[BlockKey]]) -> None:
        self._index.leave(_those_that_stay(keys, deletion))
        self._index.deleted(keys)
        self.wake()  # for what was in doubt until now

    def _deleted(self, keys: Sequence[BlockKey], deletion: asyncio.Future[list[BlockKey]]) -> None:
        if stay := _those_that_stay(keys, deletion):
            self._num_stayed += len(stay)
            self._next_deletion_s = self._runtime.now_s() + _LOOK_EVERY_S  # or all blocks would be tried in a loop
            for key in stay:
                self._index.publish(key)  # in doubt: storage is asked whether it is there
        self._index.deleted(keys)
        self.wake()

    async def _make_room(self) -> int:
        """Where writes have failed since the last time: does storage take any? If it is full, some of ours go."""
        has_failures = self._index.num_failed_writes != self._num_failures_seen
        if self._runtime.now_s() < self._next_try_s or not (has_failures or self._refusal):
            return 0
        self._num_failures_seen = self._index.num_failed_writes
        num_evicted = 0
        if isinstance(await self._try_write(), StoreFullError):
            if used_bytes := self._index.used_bytes():  # or it is full of others' data, and may soon have room for much
                self._full_at_bytes = (1 - _SHARE_FREED) * used_bytes
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
            there: Mapping[BlockKey, bool] = {}
            try:
                there = await self._calls.call(self._which_exist, keys)
            finally:
                # While it is doubted the index knows which namespace the object is in.
                self._index.leave(key for key in keys if key not in there)
                for key in keys:
                    self._index.settle(key, is_stored=there.get(key, False))

    def _which_exist(self, keys: Sequence[BlockKey]) -> dict[BlockKey, bool]:
        """Without those of which storage does not say."""
        there = {}
        for key in keys:
            with suppress(StoreError):
                there[key] = self._store.exists(key)
        return there


def _those_that_stay(keys: Sequence[BlockKey], deletion: asyncio.Future[list[BlockKey]]) -> Sequence[BlockKey]:
    return keys if deletion.cancelled() or deletion.exception() else deletion.result()

"""A pool of staging slots: first come first served, and never reissued while any transfer could still touch one.

A slot is free, granted, or lingering: released by its owner, but held by a transfer that has not come to rest. Or it is
aside, because damage was found in it. Only the pool decides when a lingering slot, or one that is aside, is free again.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from dualpath.core.errors import ConfigError, DeadlineExceededError, TransferError
from dualpath.core.runtime import Clock

_ASIDE = 8  # one of so many slots at most


@dataclass(slots=True, eq=False)
class _Waiter:
    num_slots: int
    these: tuple[int, ...] | None = None  # no others will do
    granted: Future[list[int]] = field(default_factory=Future)


class SlotPool:
    """Slots ``[first_slot, first_slot + num_slots)``. All methods are thread-safe and none but ``acquire`` waits.

    ``waits_for_lingering=False``: while all slots linger nobody waits for one; it is refused at once.
    """

    def __init__(self, num_slots: int, clock: Clock, *, first_slot: int = 0, waits_for_lingering: bool = True) -> None:
        self.num_slots = num_slots
        self._waits_for_lingering = waits_for_lingering
        self._first_slot = first_slot
        self._clock = clock
        self._lock = threading.Lock()
        self._free = list(range(first_slot + num_slots - 1, first_slot - 1, -1))  # a stack, lowest slot on top
        self._granted: set[int] = set()
        self._lingering: set[int] = set()
        self._suspects: set[int] = set()  # of those two: not to be free when they come back
        self._aside: deque[int] = deque()  # suspects that came back, the first one first
        self._holds: Counter[int] = Counter()  # transfers that may touch a slot
        self._waiters: deque[_Waiter] = deque()
        self._is_closed = False

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Slots that somebody owns, or that linger."""
        return self.num_slots - len(self._free) - len(self._aside)

    @property
    def num_aside(self) -> int:
        return len(self._aside)

    @property
    def granted(self) -> list[int]:
        """Slots that somebody owns, in order."""
        with self._lock:
            return sorted(self._granted)

    @property
    def num_waiting(self) -> int:
        return len(self._waiters)

    def __contains__(self, slot: int) -> bool:
        return self._first_slot <= slot < self._first_slot + self.num_slots

    async def acquire(self, num_slots: int, deadline_s: float | None = None) -> list[int]:
        """Wait in line until ``num_slots`` slots are granted together. Any event loop.

        Raises DeadlineExceededError after ``deadline_s`` or when refused, ConfigError for more than the pool has,
        TransferError when it closes. Cancelled or failed, it has taken nothing.
        """
        return await self._acquire(_Waiter(num_slots), deadline_s)

    async def acquire_these(self, slots: Sequence[int], deadline_s: float | None = None) -> list[int]:
        """As ``acquire``, but these and no others: another pool has granted them, and this one goes by it.

        Raises ValueError where one is not of this pool, or there twice.
        """
        if len(set(slots)) != len(slots) or not all(slot in self for slot in slots):
            raise ValueError(f"not of this pool, or twice: slots {sorted(slots)}")
        return await self._acquire(_Waiter(len(slots), tuple(slots)), deadline_s)

    async def _acquire(self, waiter: _Waiter, deadline_s: float | None) -> list[int]:
        self._enqueue(waiter)
        if not waiter.granted.done():
            await self._wait(waiter, deadline_s)
        return waiter.granted.result()

    def acquire_now(self, num_slots: int) -> list[int] | None:
        """Slots that are free now, past the line, or None: for owners of others that cannot be used any more."""
        with self._lock:
            if self._is_closed or num_slots > len(self._free):
                return None
            slots = [self._free.pop() for _ in range(num_slots)]
            self._granted.update(slots)
            return slots

    def release(self, slots: Iterable[int]) -> None:
        """Give granted slots back. Raises ValueError for one that is not granted, and then releases none."""
        slots = list(slots)
        with self._lock:
            if len(set(slots)) != len(slots) or not self._granted.issuperset(slots):
                raise ValueError(f"not granted, or twice: slots {sorted(slots)}")
            self._granted.difference_update(slots)
            for slot in slots:
                if self._holds[slot]:
                    self._lingering.add(slot)
                else:
                    self._take_back(slot)
            self._grant()

    def used(self, slots: Iterable[int]) -> list[int]:
        """Those of them that somebody owns, or that linger."""
        with self._lock:
            return [slot for slot in slots if slot in self._granted or slot in self._lingering]

    def suspect(self, slots: Iterable[int]) -> None:
        """Damage was found in these: bad memory, or somebody writes to them who must not. Their owner keeps them.

        When they come back they are set aside, an eighth of the pool at most: then the first one returns. So does one
        that is needed because all others together are too few.
        """
        with self._lock:
            self._suspects.update(slot for slot in slots if slot in self._granted or slot in self._lingering)

    def hold(self, slots: Iterable[int]) -> None:
        """A transfer that may touch these slots begins. Raises ValueError for one that nobody owns."""
        slots = list(slots)
        with self._lock:
            if not self._granted.issuperset(slots):
                raise ValueError(f"a transfer may not use slots that are not granted: {sorted(slots)}")
            self._holds.update(slots)

    def unhold(self, slots: Iterable[int]) -> None:
        """That transfer has come to rest."""
        with self._lock:
            for slot in slots:
                self._holds[slot] -= 1
                if self._holds[slot] == 0 and slot in self._lingering:
                    self._lingering.remove(slot)
                    self._take_back(slot)
            self._grant()

    def close(self) -> None:
        """Send everybody in line away with TransferError."""
        with self._lock:
            self._is_closed = True
            waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            waiter.granted.set_exception(TransferError("the engine is closing"))

    def check_integrity(self) -> None:
        """Raise AssertionError unless every slot is in exactly one state, holds are sane and nobody waits in vain."""
        with self._lock:
            states = [*self._free, *self._granted, *self._lingering, *self._aside]
            assert self._suspects <= self._granted | self._lingering, "a slot is suspected that is not in use"
            assert len(self._aside) <= self.num_slots // _ASIDE, "too many are aside"
            expected = list(range(self._first_slot, self._first_slot + self.num_slots))
            assert sorted(states) == expected, "a slot was lost or is in two states"
            assert all(count >= 0 for count in self._holds.values()), "a hold was dropped twice"
            held = {slot for slot, count in self._holds.items() if count}
            assert held.isdisjoint(self._free), "a free slot is held by a transfer"
            assert self._lingering <= held, "a slot lingers without a hold"
            assert not self._waiters or not self._suffices(self._waiters[0]), "the line stands still"

    def _enqueue(self, waiter: _Waiter) -> None:
        if waiter.num_slots > self.num_slots:
            raise ConfigError(f"{waiter.num_slots} staging slots wanted, there are {self.num_slots} in all")
        waiter.granted.set_running_or_notify_cancel()  # a cancelled task must not cancel it: _withdraw decides
        with self._lock:
            if self._is_closed:
                raise TransferError("the engine is closing")
            self._waiters.append(waiter)
            self._grant()

    async def _wait(self, waiter: _Waiter, deadline_s: float | None) -> None:
        granted = asyncio.wrap_future(waiter.granted)
        granted.add_done_callback(lambda future: future.cancelled() or future.exception())  # acquire raises it
        waits: set[asyncio.Future[Any]] = {granted}
        timer = None if deadline_s is None else asyncio.ensure_future(self._clock.sleep_s(deadline_s))
        if timer is not None:
            waits.add(timer)
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not self._withdraw(waiter) and waiter.granted.exception() is None:
                self.release(waiter.granted.result())
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if self._withdraw(waiter):
            raise DeadlineExceededError(f"no {waiter.num_slots} staging slots became free within {deadline_s} s")

    def _withdraw(self, waiter: _Waiter) -> bool:
        """Leave the line. False: too late, the slots are granted (or the pool is closed)."""
        with self._lock:
            if waiter not in self._waiters:
                return False
            self._waiters.remove(waiter)
            self._grant()  # those behind may need less
            return True

    def _take_back(self, slot: int) -> None:
        """Nobody owns it, nothing touches it. Under the lock."""
        if slot not in self._suspects:
            self._free.append(slot)
            return
        self._suspects.remove(slot)
        self._aside.append(slot)
        if len(self._aside) > self.num_slots // _ASIDE:
            self._free.insert(0, self._aside.popleft())  # to be used last

    def _suffices(self, waiter: _Waiter) -> bool:
        """Are they free? Under the lock."""
        if waiter.these is not None:
            return {*self._free, *self._aside}.issuperset(waiter.these)
        num_slots = waiter.num_slots
        while num_slots > self.num_slots - len(self._aside):
            self._free.append(self._aside.popleft())
        return num_slots <= len(self._free)

    def _grant(self) -> None:
        """Serve the head of the line as long as there is enough for it, or refuse everybody. Under the lock."""
        while self._waiters and self._suffices(self._waiters[0]):
            waiter = self._waiters.popleft()
            slots = self._take(waiter)
            self._granted.update(slots)
            waiter.granted.set_result(slots)
        self._refuse_where_all_linger()

    def _take(self, waiter: _Waiter) -> list[int]:
        """Out of those that are free, or aside. Under the lock."""
        if waiter.these is None:
            return [self._free.pop() for _ in range(waiter.num_slots)]
        wanted = set(waiter.these)
        self._free = [slot for slot in self._free if slot not in wanted]
        self._aside = deque(slot for slot in self._aside if slot not in wanted)
        return list(waiter.these)

    def _refuse_where_all_linger(self) -> None:
        """Under the lock."""
        if not self._waits_for_lingering and len(self._lingering) == self.num_slots:
            while self._waiters:
                text = f"all {self.num_slots} slots are held by transfers that do not end"
                self._waiters.popleft().granted.set_exception(DeadlineExceededError(text))

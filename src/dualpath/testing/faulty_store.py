"""A StoreIo that misbehaves on request: failures, hangs, delays, wrong and torn bytes over any other, for tests.

Faults are set by key and direction and take effect on tickets already under way too, except that a ticket's own end is
final. A hung ticket is the worst case that storage can offer: it stays IN_PROGRESS, ``release`` refuses, and after
``unhang`` its bytes may still arrive, late.
"""

from __future__ import annotations

import ctypes
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from dualpath.core.errors import StoreError, StoreFullError
from dualpath.core.ids import BlockKey
from dualpath.core.runtime import Clock, SystemRuntime
from dualpath.store.contract import IoRequest, IoState, IoTicket, StoreIo


@dataclass(slots=True)
class FaultPlan:
    """What is to go wrong in one direction. None in place of a set of keys means every key."""

    failing: Container[BlockKey] | None = field(default_factory=set)
    hanging: Container[BlockKey] | None = field(default_factory=set)
    corrupt: Container[BlockKey] | None = field(default_factory=set)
    torn: Container[BlockKey] | None = field(default_factory=set)  # says that it is done when half has moved
    full: bool = False  # writes are refused
    leak_after_s: float | None = None  # a hung transfer moves its bytes so long after it began, and says nothing
    delay_s: float = 0.0


@dataclass(slots=True, eq=False)
class FaultyTicket:
    key: BlockKey
    request: IoRequest
    plan: FaultPlan
    inner: IoTicket
    due_s: float
    leak_s: float
    is_write: bool
    error: Exception | None = None
    state: IoState = IoState.IN_PROGRESS


class FaultyIo:
    """Wraps ``inner``; obeys the same contract, single-threaded. Setting faults is for the same thread, too."""

    def __init__(self, inner: StoreIo, clock: Clock | None = None, *, default_delay_s: float = 0.0) -> None:
        self._inner = inner
        self._clock = clock or SystemRuntime()
        self._default_delay_s = default_delay_s  # beside a plan's
        self.reads = FaultPlan()
        self.writes = FaultPlan()

    def fail_reads(self, keys: Iterable[BlockKey] | None = None) -> None:
        self.reads.failing = _as_set(keys)

    def fail_writes(self, keys: Iterable[BlockKey] | None = None) -> None:
        self.writes.failing = _as_set(keys)

    def hang_reads(self, keys: Iterable[BlockKey] | None = None) -> None:
        self.reads.hanging = _as_set(keys)

    def hang_writes(self, keys: Iterable[BlockKey] | None = None) -> None:
        self.writes.hanging = _as_set(keys)

    def corrupt_reads(self, keys: Iterable[BlockKey] | None = None) -> None:
        """Flip one bit in the last byte of what these reads deliver; their tickets say DONE."""
        self.reads.corrupt = _as_set(keys)

    def unhang(self) -> None:
        """Let everything that hangs go on."""
        self.reads.hanging, self.writes.hanging = set(), set()

    def submit_reads(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        return self._wrap(requests, self._inner.submit_reads(requests), self.reads, is_write=False)

    def submit_writes(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        return self._wrap(requests, self._inner.submit_writes(requests), self.writes, is_write=True)

    def poll(self, ticket: IoTicket) -> IoState:
        assert isinstance(ticket, FaultyTicket)
        if self._is_hung(ticket):
            self._leak(ticket)
        elif ticket.state is IoState.IN_PROGRESS and self._clock.now_s() >= ticket.due_s:
            self._advance(ticket)
        return ticket.state

    def release(self, ticket: IoTicket) -> bool:
        assert isinstance(ticket, FaultyTicket)
        if self._is_hung(ticket):
            self._leak(ticket)
            return False
        return self._inner.release(ticket.inner)

    def stalled_s(self) -> float:
        return self._inner.stalled_s()

    def close(self) -> None:
        self._inner.close()

    def _wrap(
        self, requests: Sequence[IoRequest], tickets: Sequence[IoTicket], plan: FaultPlan, *, is_write: bool
    ) -> list[FaultyTicket]:
        now_s = self._clock.now_s()
        due_s = now_s + self._default_delay_s + plan.delay_s
        leak_s = float("inf") if plan.leak_after_s is None else now_s + plan.leak_after_s
        return [
            FaultyTicket(r.key, r, plan, t, due_s, leak_s, is_write) for r, t in zip(requests, tickets, strict=True)
        ]

    def _is_hung(self, ticket: FaultyTicket) -> bool:
        return _holds(ticket.plan.hanging, ticket.key, ticket.state)

    def _leak(self, ticket: FaultyTicket) -> None:
        if self._clock.now_s() >= ticket.leak_s:
            ticket.leak_s = float("inf")
            self._inner.poll(ticket.inner)

    def _advance(self, ticket: FaultyTicket) -> None:
        """A failing ticket fails once the inner one can no longer touch memory: FAILED means quiescent."""
        if ticket.plan.full or _holds(ticket.plan.failing, ticket.key, ticket.state):
            if self._inner.release(ticket.inner):
                kind = StoreFullError if ticket.plan.full else StoreError
                ticket.error, ticket.state = kind(f"block {ticket.key.hex()}: injected"), IoState.FAILED
            return
        state = self._move(ticket)
        if state is IoState.DONE and _holds(ticket.plan.corrupt, ticket.key, ticket.state):
            last = ctypes.c_uint8.from_address(ticket.request.address + ticket.request.num_bytes - 1)
            last.value ^= 1
        ticket.error, ticket.state = ticket.inner.error, state

    def _move(self, ticket: FaultyTicket) -> IoState:
        if not _holds(ticket.plan.torn, ticket.key, ticket.state):
            return self._inner.poll(ticket.inner)
        request = ticket.request
        start, num_bytes = request.address + request.num_bytes // 2, request.num_bytes - request.num_bytes // 2
        before = ctypes.string_at(start, num_bytes)
        if ticket.is_write:
            ctypes.memset(start, 0, num_bytes)  # what is stored; the memory itself is as it was afterwards
        state = self._inner.poll(ticket.inner)
        ctypes.memmove(start, before, num_bytes)
        return state


def _as_set(keys: Iterable[BlockKey] | None) -> set[BlockKey] | None:
    return None if keys is None else set(keys)


def _holds(keys: Container[BlockKey] | None, key: BlockKey, state: IoState) -> bool:
    """Whether a fault applies to a ticket of this key that is still on its way."""
    return state is IoState.IN_PROGRESS and (keys is None or key in keys)

"""A budget of bytes that requests share: whoever does not fit waits in the order of arrival, up to a deadline.

A share may grow while it is held, as a body does that is being read. So that half-grown shares never wait for each
other, one of them at a time may exceed the budget, and they come before those that hold nothing yet. At most the
capacity and one whole share are in use.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dualpath.core.errors import OverloadedError


@dataclass(eq=False, slots=True)
class Share:
    budget: ByteBudget
    held_bytes: int = 0

    async def take(self, num_bytes: int, timeout_s: float) -> None:
        """``num_bytes`` more. Raises OverloadedError when they are not to be had within ``timeout_s``."""
        await self.budget.take(self, num_bytes, timeout_s)


@dataclass(eq=False, slots=True)
class _Claim:
    share: Share
    num_bytes: int
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class ByteBudget:
    def __init__(self, capacity_bytes: int, purpose: str) -> None:
        """``purpose`` completes "no room ..." in the error that a client gets."""
        self._capacity_bytes = self._free_bytes = capacity_bytes
        self._purpose = purpose
        self._growing: deque[_Claim] = deque()
        self._fresh: deque[_Claim] = deque()  # of shares that hold nothing
        self._over: Share | None = None  # the one that may exceed the budget

    @property
    def used_bytes(self) -> int:
        return self._capacity_bytes - self._free_bytes

    @contextmanager
    def share(self) -> Iterator[Share]:
        """A share that is given back at the end, however that comes."""
        share = Share(self)
        try:
            yield share
        finally:
            self._free_bytes += share.held_bytes
            share.held_bytes = 0
            if self._over is share:
                self._over = None
            self._grant()

    async def take(self, share: Share, num_bytes: int, timeout_s: float) -> None:
        claim = _Claim(share, num_bytes)
        if self._over is share:  # never behind those that wait for it
            self._give(claim)
            return
        queue = self._growing if share.held_bytes else self._fresh
        queue.append(claim)
        self._grant()
        try:
            async with asyncio.timeout(timeout_s):
                await claim.granted
        except TimeoutError:
            raise OverloadedError(f"no room {self._purpose} within {timeout_s:g} s") from None
        finally:
            if claim in queue:
                queue.remove(claim)
                self._grant()  # it may have kept others waiting

    def _grant(self) -> None:
        while queue := self._growing or self._fresh:
            if not self._fits(queue[0]):
                return
            self._give(queue.popleft())

    def _fits(self, claim: _Claim) -> bool:
        if claim.num_bytes <= self._free_bytes:
            return True
        if claim.share.held_bytes and self._over is None:
            self._over = claim.share
            return True
        return self._free_bytes == self._capacity_bytes  # larger than the budget: alone

    def _give(self, claim: _Claim) -> None:
        self._free_bytes -= claim.num_bytes
        claim.share.held_bytes += claim.num_bytes
        if not claim.granted.done():
            claim.granted.set_result(None)

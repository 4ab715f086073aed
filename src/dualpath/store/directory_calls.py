"""Calls into a store's directory, which may block: made beside the event loop, a few at once, none awaited for good.

A call that does not return keeps one thread and one place; when all places are taken, nobody begins another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from dualpath.core.errors import StoreError
from dualpath.core.runtime import Runtime

T = TypeVar("T")


class DirectoryCalls:
    """Event loop only."""

    def __init__(self, runtime: Runtime, max_under_way: int = 4, patience_s: float = 30.0) -> None:
        self._runtime = runtime
        self._max_under_way = max_under_way
        self._patience_s = patience_s
        self._under_way: dict[asyncio.Future[Any], float] = {}  # since when; oldest first

    @property
    def stalled_s(self) -> float:
        """How long the oldest call has had no answer; 0.0 where none is under way."""
        began_s = next(iter(self._under_way.values()), None)
        return 0.0 if began_s is None else self._runtime.now_s() - began_s

    async def call(self, work: Callable[..., T], *args: Any) -> T:
        """Raises what ``work`` raises, or StoreError where there is no answer in time; then it may go on."""
        await self.room()
        call = self.begin(work, *args)
        await self.wait(call)
        return call.result()

    async def room(self) -> None:
        """Until ``begin`` may be called. Raises StoreError where no call that is under way ends in time."""
        while len(self._under_way) >= self._max_under_way:
            await self.wait(*self._under_way)

    def begin(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """There must be room. The call goes on when whoever waits for it is cancelled."""
        assert len(self._under_way) < self._max_under_way, "no room"
        call = asyncio.ensure_future(self._runtime.to_thread(work, *args))
        self._under_way[call] = self._runtime.now_s()
        call.add_done_callback(self._end)
        return call

    async def wait(self, *calls: asyncio.Future[Any]) -> None:
        """Until one of them has ended. Raises StoreError where none does in time."""
        done, _ = await asyncio.wait(calls, timeout=self._patience_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise StoreError(f"storage has not answered for {self.stalled_s:.0f} s")

    def close(self) -> None:
        """Stop waiting for whatever is under way; threads that hang are left behind."""
        for call in list(self._under_way):
            call.cancel()

    def _end(self, call: asyncio.Future[Any]) -> None:
        del self._under_way[call]
        if not call.cancelled():
            call.exception()  # has been looked at, should nobody else do so

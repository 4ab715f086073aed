"""One sampler for all open pages: a sample a second while somebody follows, and so many events a second in all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

EVENTS_PER_S = 25.0  # to all pages together: with more of them each gets its own more seldom
_SOON = 1.5  # times the usual wait: who has to wait longer comes again instead


class Sampler:
    """Event loop only."""

    def __init__(
        self, sample: Callable[[], Awaitable[bytes]], every_s: float = 1.0, events_per_s: float = EVENTS_PER_S
    ) -> None:
        self._sample = sample
        self._every_s = every_s
        self._apart_s = 1.0 / events_per_s
        self._task: asyncio.Task[bytes] | None = None
        self._taken_s = 0.0
        self._slot_s = 0.0  # when the last one to be told a time comes again

    async def follow(self, duration_s: float) -> AsyncIterator[bytes]:
        """Samples for so long, as server-sent events; what ``sample`` raises goes to all.

        The last one says after how many milliseconds to come again. Those moments are ``1 / events_per_s`` apart, so
        that many pages come one after the other, not at once.
        """
        end_s = asyncio.get_running_loop().time() + duration_s
        while True:
            event, wait_s = await self._latest(), self._next_slot_s()
            if wait_s > _SOON * self._every_s or asyncio.get_running_loop().time() + wait_s > end_s:
                yield b"retry: %d\n" % (1000 * wait_s) + event
                return
            yield event
            await asyncio.sleep(wait_s)

    def _next_slot_s(self) -> float:
        """From now."""
        now_s = asyncio.get_running_loop().time()
        self._slot_s = max(now_s + self._every_s, self._slot_s + self._apart_s)
        return self._slot_s - now_s

    async def _latest(self) -> bytes:
        """A sample that was begun within the last ``every_s``."""
        now_s = asyncio.get_running_loop().time()
        if self._task is None or (self._task.done() and now_s - self._taken_s >= self._every_s):
            self._taken_s = now_s
            self._task = asyncio.ensure_future(self._take())
            self._task.add_done_callback(_see)
        return await asyncio.shield(self._task)

    async def _take(self) -> bytes:
        return await self._sample()


def _see(task: asyncio.Task[bytes]) -> None:
    """An error that came after all had gone is nobody's."""
    if not task.cancelled():
        task.exception()

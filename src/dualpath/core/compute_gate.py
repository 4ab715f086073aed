"""Whether an engine may compute: while it is paused, or its weights change, no forward begins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class ComputeGate:
    """Event loop only."""

    def __init__(self) -> None:
        self._open, self._at_rest = asyncio.Event(), asyncio.Event()  # at rest: no forward is running
        self._open.set()
        self._at_rest.set()
        self._is_paused, self._is_changing = False, False

    async def pause(self) -> None:
        """No forward runs on return."""
        self._set(is_paused=True)
        await self._at_rest.wait()

    def resume(self) -> None:
        self._set(is_paused=False)

    async def wait(self) -> None:
        while not self._open.is_set():
            await self._open.wait()

    @contextmanager
    def computing(self) -> Iterator[None]:
        """A forward, up to the delivery of what comes of it."""
        self._at_rest.clear()
        try:
            yield
        finally:
            self._at_rest.set()

    async def begin_change(self) -> None:
        """No forward runs on return, nor begins before ``end_change``, whether it is paused or not."""
        self._set(is_changing=True)
        await self._at_rest.wait()

    def end_change(self) -> None:
        self._set(is_changing=False)

    def _set(self, *, is_paused: bool | None = None, is_changing: bool | None = None) -> None:
        self._is_paused = self._is_paused if is_paused is None else is_paused
        self._is_changing = self._is_changing if is_changing is None else is_changing
        if self._is_paused or self._is_changing:
            self._open.clear()
        else:
            self._open.set()

"""Whether requests are given to engines. While engines stand still, what waits for tokens of theirs has no deadline."""

from __future__ import annotations

import asyncio


class Gate:
    """Made, and used, on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._opened_at_s = float("-inf")
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._is_frozen = False

    @property
    def is_open(self) -> bool:
        return self._is_open.is_set()

    def close(self, *, freezes: bool) -> None:
        """``freezes``: engines are to compute nothing. Else one that hangs is found out as ever."""
        self._is_open.clear()
        if self._is_frozen and not freezes:
            self._opened_at_s = self._loop.time()
        self._is_frozen = freezes

    def open(self) -> None:
        if self._is_frozen:
            self._opened_at_s = self._loop.time()
        self._is_frozen = False
        self._is_open.set()

    async def opened(self) -> None:
        await self._is_open.wait()

    def counts_from_s(self) -> float:
        """By the event loop's clock: no earlier silence counts."""
        return self._loop.time() if self._is_frozen else self._opened_at_s

"""Time as a dependency: control code asks an injected clock, so a test or a simulator can be the one to tell it."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    def now_s(self) -> float:
        """Monotonic seconds; only differences mean anything. Any thread."""
        ...

    async def sleep_s(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        return time.monotonic()

    async def sleep_s(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

"""An event loop whose clock jumps to the next timer when nothing is left to do: hours of waiting in milliseconds."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from dualpath.core.runtime import SystemRuntime

T = TypeVar("T")

_REAL_WAIT_S = 2.0  # for threads; nothing to do for longer than this is a deadlock


class _JumpingSelector(selectors.DefaultSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(_REAL_WAIT_S if timeout is None else 0)
        if timeout is None and not events:
            raise RuntimeError("deadlock: nothing to do and no timer is set")
        if timeout and not events:
            self.now_s += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = _JumpingSelector()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now_s


class LoopRuntime(SystemRuntime):
    """dualpath.core.runtime.Runtime on the loop's time, with the same chance every time."""

    def __init__(self) -> None:
        self._random = random.Random(0)

    def random_bits(self, num_bits: int) -> int:
        return self._random.getrandbits(num_bits)

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def unix_s(self) -> float:
        return self.now_s()

    async def sleep_s(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def run_virtual(scenario: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(scenario)

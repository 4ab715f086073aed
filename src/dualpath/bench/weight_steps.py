"""Weights that change in the middle of a rollout, as a trainer changes them; and what is done to stored KV then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from dualpath.core.pause import PauseMode
from dualpath.gateway.backend import ServerControl
from dualpath.models.noise import add_noise

NOISE = 0.01


def make_steps(model_dir: Path, scratch: Path, count: int) -> list[Path]:
    """Model directories, each with other weights."""
    return [add_noise(model_dir, scratch / f"step-{step}", scale=NOISE, seed=step) for step in range(1, count + 1)]


class WeightSteps:
    """After every so many turns of all agents together the next weights come."""

    def __init__(
        self, control: ServerControl, steps: Sequence[Path], every: int, wipe: Callable[[], Awaitable[None]] | None
    ) -> None:
        self._control, self._steps, self._every, self._wipe = control, steps, every, wipe
        self._num_turns, self._due = 0, asyncio.Semaphore(0)
        self.update_s: list[float] = []  # how long each took, from when it was begun

    def turn(self) -> None:
        self._num_turns += 1
        if self._num_turns % self._every == 0:
            self._due.release()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    async def _run(self) -> None:
        for directory in self._steps:
            await self._due.acquire()
            start_s = time.perf_counter()
            if self._wipe is None:
                await self._control.update_weights(str(directory))
            else:
                await self._control.pause(PauseMode.KEEP)
                await self._control.update_weights(str(directory))
                await self._wipe()
                await self._control.resume()
            self.update_s.append(time.perf_counter() - start_s)

"""Background tasks with an owner: nothing is forgotten, errors are logged, and the owner can wait for the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)


class TaskSet:
    """Work comes to an end by itself and is waited for; patrols run until they are cancelled.

    In order of their beginning: sets of tasks have another order in every process.
    """

    def __init__(self) -> None:
        self._work: dict[asyncio.Task[Any], None] = {}
        self._patrols: dict[asyncio.Task[Any], None] = {}

    def __len__(self) -> int:
        return len(self._work) + len(self._patrols)

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, is_patrol: bool = False) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(coroutine)
        owner = self._patrols if is_patrol else self._work
        owner[task] = None
        task.add_done_callback(lambda ended: owner.pop(ended, None))
        task.add_done_callback(_log_error)
        return task

    async def wait(self, timeout_s: float | None) -> bool:
        """Wait for all work, also for what it starts meanwhile. False: some is left after ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._work:
                    await asyncio.wait(list(self._work))
        except TimeoutError:
            return False
        return True

    async def cancel(self) -> None:
        """End everything that is left."""
        while tasks := [*self._work, *self._patrols]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


def _log_error(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("background task %s failed", task.get_name(), exc_info=task.exception())

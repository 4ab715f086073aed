"""Scenarios on the virtual loop of the simulated worlds: hours in milliseconds, ready callbacks in any order."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from dualpath.testing.loop import VirtualLoop
from dualpath.testing.runtime import VirtualRuntime

T = TypeVar("T")


class LoopRuntime(VirtualRuntime):
    """On the loop that runs."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        super().__init__(loop, 0)


def run_virtual(scenario: Coroutine[Any, Any, T], seed: int = 0) -> T:
    """``seed`` draws the order of what is ready at the same moment."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(seed)) as runner:
        try:
            return runner.run(scenario)
        finally:
            runner.run(_end_what_is_left())


async def _end_what_is_left() -> None:
    """Also what begins while others end: tasks of a scenario that failed would be collected in the middle of a test."""
    for _ in range(100):
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0.01)

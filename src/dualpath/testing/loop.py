"""An event loop on virtual time: the clock jumps to the next timer, and a seed draws the order of what is ready.

Code may rely on nothing that a real loop does not promise, so callbacks that are ready at the same moment run in any
order. A callback belongs to the process in whose context it was made; processes can be killed, so that nothing of them
runs any more, not even ``finally``, and stopped, so that everything of them waits.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import heapq
import itertools
import random
from collections.abc import Callable
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from typing import Any

_RESOLUTION_S = 1e-9  # timers that end at the same moment
_MANY_TIMERS = 100


@dataclass(slots=True, eq=False)
class Process:
    """One that is simulated: whatever is started in its context is its own."""

    name: str
    is_alive: bool = True
    is_stopped: bool = False
    waiting: list[asyncio.Handle] = field(default_factory=list)  # what became due while it was stopped

    def context(self) -> Context:
        context = contextvars.copy_context()
        context.run(current_process.set, self)
        return context


current_process: ContextVar[Process | None] = ContextVar("current_process", default=None)


class Deadlock(AssertionError):
    """Nothing is ready and no timer is set."""


class _Task(asyncio.Task[Any]):
    """Tasks in a set are in the same order in every run."""

    def __init__(self, number: int, *args: Any, **kwargs: Any) -> None:
        self._number = number
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.base_events.BaseEventLoop):
    """``now_s`` is its time. Not for I/O: it has none."""

    def __init__(self, seed: int | str) -> None:
        super().__init__()
        self.order = random.Random(f"order {seed}")
        self.now_s = 0.0
        self.num_steps = 0
        self.max_steps: int | None = None
        self._bits = self.order.getrandbits
        self._ready: collections.deque[asyncio.Handle] = collections.deque()
        self._scheduled: list[asyncio.TimerHandle] = []  # a heap
        self._task_numbers = itertools.count()
        self._graveyard: list[object] = []  # what a killed process had: its code must never run again
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        return self.now_s

    # -- its course ---------------------------------------------------------------------------------------------------

    def _run_once(self) -> None:
        """Of a base loop: run what is ready, or move the clock to the next timer."""
        scheduled, ready = self._scheduled, self._ready
        self._drop_cancelled(scheduled)
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            if not scheduled:
                raise Deadlock("nothing is ready and no timer is set")
            self.now_s += max(0.0, scheduled[0].when() - self.now_s)
        end_s = self.now_s + _RESOLUTION_S
        while scheduled and scheduled[0]._when < end_s:  # type: ignore[attr-defined]
            timer = heapq.heappop(scheduled)
            timer._scheduled = False  # type: ignore[attr-defined]
            ready.append(timer)
        for _ in range(len(ready)):
            if (num_ready := len(ready)) > 1:
                ready.rotate(-self._draw(num_ready))
            handle = ready.popleft()
            if self._admits(handle) and not handle._cancelled:
                handle._run()

    def _draw(self, num: int) -> int:
        """``order.randrange``, which takes twice as long."""
        num_bits = num.bit_length()
        drawn = self._bits(num_bits)
        while drawn >= num:
            drawn = self._bits(num_bits)
        return drawn

    def _drop_cancelled(self, scheduled: list[asyncio.TimerHandle]) -> None:
        """Timers that were cancelled: all if they are many, else those in front."""
        num_cancelled: int = self._timer_cancelled_count  # type: ignore[has-type]
        if len(scheduled) > _MANY_TIMERS and 2 * num_cancelled > len(scheduled):
            for timer in scheduled:
                timer._scheduled = not timer._cancelled  # type: ignore[attr-defined]
            scheduled[:] = [timer for timer in scheduled if timer._scheduled]  # type: ignore[attr-defined]
            heapq.heapify(scheduled)
            self._timer_cancelled_count = 0
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False  # type: ignore[attr-defined]
            self._timer_cancelled_count -= 1

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    # -- processes ----------------------------------------------------------------------------------------------------

    def _admits(self, handle: asyncio.Handle) -> bool:
        """False: its process is dead or stopped, and the handle kept."""
        self.num_steps += 1
        if self.max_steps is not None and self.num_steps > self.max_steps:
            raise AssertionError(f"no end after {self.max_steps} steps")
        process: Process | None = handle._context.get(current_process)  # type: ignore[attr-defined]
        if process is None or (process.is_alive and not process.is_stopped):
            return True
        (process.waiting if process.is_alive else self._graveyard).append(handle)
        return False

    def kill(self, process: Process) -> None:
        process.is_alive = False
        self._graveyard += process.waiting
        process.waiting.clear()

    def stop_process(self, process: Process) -> None:
        process.is_stopped = True

    def continue_process(self, process: Process) -> None:
        process.is_stopped = False
        waiting, process.waiting = process.waiting, []
        self._ready.extend(waiting)

    def bury(self, *things: object) -> None:
        """Keep what must not be collected: a generator that is collected runs its ``finally``."""
        self._graveyard.extend(things)

    def wind_up(self) -> None:
        """The world is over: nothing of it runs any more, not even to clean up."""
        self._ready.clear()
        self._scheduled.clear()
        for task in asyncio.all_tasks(self):
            self._graveyard.append(task)
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._graveyard.clear()

    def _make_task(self, loop: Any, coroutine: Any, **kwargs: Any) -> asyncio.Task[Any]:
        task = _Task(next(self._task_numbers), coroutine, loop=loop, **kwargs)
        context: Context | None = kwargs.get("context")
        process = current_process.get() if context is None else context.get(current_process)
        if process is not None:
            self._graveyard.append(task)
        return task

    # -- what a loop has ----------------------------------------------------------------------------------------------

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        raise AssertionError(f"{func} would run on a thread: take a Runtime's to_thread")

    def _write_to_self(self) -> None:
        """Nobody sleeps."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none."""

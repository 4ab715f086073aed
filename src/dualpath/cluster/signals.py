"""Signals: the first asks a server for an orderly end, the second takes it; both end other commands as Ctrl-C does."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130  # what shells report for a process that Ctrl-C ended
SAME_WISH_S = 0.5  # signals closer together than this are one: process groups and supervisors send some twice
FORCED_CLOSE_S = 5.0  # how long closing may take after the second signal


class Stopper:
    """Turns SIGINT and SIGTERM into ``stop``, or into a cancellation. One per process, on its event loop."""

    def __init__(self, say: Callable[[str], None], drain_s: float) -> None:
        self.stop = asyncio.Event()
        self.forced = False
        self._say, self._drain_s = say, drain_s
        self._is_started = False
        self._task: asyncio.Task[int] | None = None
        self._num_signals = 0
        self._first_at_s = 0.0

    def started(self) -> None:
        """From now on the first signal drains; before, it ends the start."""
        self._is_started = True

    async def guard(self, main: Coroutine[Any, Any, int]) -> int:
        """Run ``main`` under the two-signal rule; its result, or INTERRUPTED when a signal cut it short."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        self._task = loop.create_task(main)
        try:
            return await self._task
        except asyncio.CancelledError:
            if self._num_signals == 0:
                raise
            return INTERRUPTED

    def _on_signal(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._num_signals == 1 and now_s - self._first_at_s < SAME_WISH_S:
            return
        self._num_signals += 1
        if self._num_signals == 1:
            self._first_at_s = now_s
            self._first()
        elif self._num_signals == 2:
            self._force()

    def _first(self) -> None:
        if self._is_started:
            self._say(f"stopping: running requests get up to {self._drain_s:g} s; Ctrl-C again stops at once")
            self.stop.set()
        else:
            self._say("stopping before the start is complete; Ctrl-C again stops at once")
            self._cancel()

    def _force(self) -> None:
        self._say("stopping at once")
        self.forced = True
        logging.disable(logging.CRITICAL)  # every task that is cut off would log its own cancellation
        if not self._is_started:
            os._exit(INTERRUPTED)  # a thread that loads weights cannot be interrupted
        asyncio.get_running_loop().call_later(FORCED_CLOSE_S, os._exit, INTERRUPTED)
        self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """For a command that ends by KeyboardInterrupt, and by it takes away its children and scratch files: SIGINT and
    SIGTERM raise it, also where they were ignored. Main thread only."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupt_on_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt_on_signals() -> None:
    """``interrupted_by_signals`` for good. SIGTERM comes as SIGINT: ``asyncio.run`` makes of that a cancellation of its
    main task, where an exception in the midst of any callback would leave transports and children open."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


@contextmanager
def held_back() -> Iterator[None]:
    """SIGINT and SIGTERM come when this is over: a step that was begun has ended then, and can be undone. Nor do they
    come to processes that are started inside."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():  # only there do they raise anything
        # A mask is one thread's: another takes the signal, and this one runs the handler.
        before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])

"""Calls that may block for as long as a file system likes, made on a few threads: one that hangs costs itself only.

Whoever owns this hands calls in and fetches what to do about their outcomes, both on one thread. Calls begin in order
and one by one, on whichever thread is free, so none waits behind one that hangs while any thread is free. One thread
does what takes microseconds, since more would only take turns; where calls wait, more come, up to a bound. Those that
hang are left behind at the end.

A call may hang for ever while storage works again for all others, and nobody makes others as long as storage counts as
stalled. So whoever asks for how long it has stalled has it tried; what began before a try that came back is forgotten.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from dualpath.core.errors import StoreError, StoreFullError
from dualpath.core.runtime import Command, Runtime, Worker

Call = Callable[[], Command]  # blocks, raises nothing, and returns what its owner is to do then

NUM_THREADS = 4
MAX_THREADS = 32  # with those that are stuck
STUCK_S = 1.0
TRIED_AFTER_S = 3.0  # without an answer
TRIED_BYTES = 1  # on a slow network a whole block would take as long as what it is to speak for
_MORE_AFTER_S = 1e-3

logger = logging.getLogger(__name__)


class BlockingCalls:
    """``run`` and ``take`` on the owner's thread; threads start when they are needed."""

    def __init__(
        self,
        runtime: Runtime,
        name: str,
        try_write: Callable[[int], None],  # so many bytes; blocks; raises StoreError where storage does not work
        num_threads: int = NUM_THREADS,
        max_threads: int = MAX_THREADS,
    ) -> None:
        self._runtime = runtime
        self._name = name
        self._try_write = try_write
        self._num_threads, self._max_threads = num_threads, max_threads
        self._lock = threading.Lock()
        self._waiting: deque[Call] = deque()
        self._begun_s: dict[int, float] = {}  # by thread: when its present call began
        self._idle: list[int] = []
        self._threads: list[Worker] = []
        self._ended: deque[Command] = deque()
        self._woken_s = 0.0
        self._worked_s = self._tried_s = -math.inf  # when the last try that came back began, and the last one at all

    @property
    def num_lively(self) -> int:
        """Calls that are waiting, under way and not stuck, or over and not taken yet."""
        with self._lock:
            return len(self._waiting) + self._num_at_work() + len(self._ended)

    def stalled_s(self, others_s: Iterable[float] = ()) -> float:
        """How long the oldest call under way has had no answer, others that began at ``others_s`` included; unless
        storage has worked since. Any thread.
        """
        with self._lock:
            now_s = self._runtime.now_s()
            oldest_s = min((s for s in (*self._begun_s.values(), *others_s) if s > self._worked_s), default=now_s)
            # Each try may hang, too: there are few, for the next one comes after twice the time.
            is_due = now_s - oldest_s >= TRIED_AFTER_S and self._tried_s - oldest_s <= (now_s - oldest_s) / 2
            if is_due:
                self._tried_s = now_s
                self._waiting.append(partial(self._try, now_s))
        if self._waiting:
            self._wake()
        return now_s - oldest_s

    def run(self, calls: Iterable[Call]) -> None:
        with self._lock:
            self._waiting.extend(calls)
        self._wake()

    def take(self) -> bool:
        """Do what is to be done about calls that are over. True: there were some."""
        if self._waiting:
            self._wake()
        num_ended = len(self._ended)
        for _ in range(num_ended):
            self._ended.popleft()()
        return num_ended > 0

    def close(self) -> int:
        """Begin no more calls. Returns how many threads are left behind, each in a call that does not return."""
        with self._lock:
            self._waiting.clear()
        return sum(
            not thread.close(0.0 if number in self._begun_s else None) for number, thread in enumerate(self._threads)
        )

    def _wake(self) -> None:
        """Put another thread to work if none is at it, or if those that are leave calls waiting."""
        now_s = self._runtime.now_s()
        with self._lock:
            if not self._waiting or self._num_at_work() >= (
                self._num_threads if now_s >= self._woken_s + _MORE_AFTER_S else 1
            ):
                return
            if self._idle:
                number = self._idle.pop()
            elif (number := len(self._threads)) < self._max_threads:
                self._threads.append(self._runtime.worker(f"{self._name}-{number}"))
            else:
                return
            self._woken_s = self._begun_s[number] = now_s
        self._threads[number].run(partial(self._work, number), _ignore)

    def _try(self, began_s: float) -> Command:
        """On a thread of ours."""
        try:
            self._try_write(TRIED_BYTES)
        except StoreFullError:
            pass  # an answer
        except StoreError as error:
            logger.info("%s: storage was tried: %s", self._name, error)
            return _nothing
        self._worked_s = began_s
        return _nothing

    def _num_at_work(self) -> int:
        """Threads that are not stuck."""
        stuck_s = self._runtime.now_s() - STUCK_S
        return sum(begun_s > stuck_s for begun_s in self._begun_s.values())

    def _work(self, number: int) -> None:
        """Make calls until none is waiting. On a thread of ours."""
        while True:
            with self._lock:
                if not self._waiting:
                    del self._begun_s[number]
                    self._idle.append(number)
                    return
                call = self._waiting.popleft()
                self._begun_s[number] = self._runtime.now_s()
            try:
                self._ended.append(call())
            except Exception:  # against its contract; whoever waits for it has a deadline
                logger.exception("a call on %s-%d", self._name, number)


def _nothing() -> None:
    """Its owner has nothing to do about a try."""


def _ignore(_: Exception | None) -> None:
    """``_work`` raises nothing."""

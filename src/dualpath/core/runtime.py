"""What the operating system gives, as a dependency: time, chance, threads. Control code takes all three from here only.

So the same code runs on threads and the machine's clock in production, and without either on a seeded virtual clock in
tests (``dualpath.testing``). Lint forbids the raw calls everywhere else in the packages that make up the data path.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

Command = Callable[[], None]
_IDLE_THREAD_S = 10.0  # an idle thread of ``to_thread`` ends after so long
_PR_SET_TIMERSLACK = 29


class Clock(Protocol):
    """The part of a runtime that most code needs."""

    def now_s(self) -> float:
        """Monotonic seconds; only differences mean anything. Any thread."""
        ...

    def unix_s(self) -> float:
        """Seconds since 1970, for people and files; it may jump, so nothing is measured with it. Any thread."""
        ...

    async def sleep_s(self, seconds: float) -> None: ...


class Worker(Protocol):
    """A thread with a queue: calls run one after the other, in order."""

    def run(self, call: Command, then: Callable[[Exception | None], None]) -> bool:
        """Queue a call; ``then`` gets the exception that ended it, or None, on the worker's thread.

        False: the worker is closed, and neither will run. Any thread.
        """
        ...

    async def call(self, work: Callable[..., T], *args: Any) -> T:
        """Run ``work`` there and await its result. Cancelled, it goes on there all the same. Event loop."""
        ...

    def close(self, deadline_s: float | None = None) -> bool:
        """Take no more calls, finish what is queued, end. Blocks. False: a call still ran after ``deadline_s``."""
        ...


class Turns(Protocol):
    """What a driver turns: work that polls, and takes commands between two looks."""

    def turn(self, commands: Sequence[Command]) -> None:
        """Run the commands, then look at everything once."""
        ...

    def wait_s(self) -> float:
        """How long to wait for a command before the next turn; 0: not at all."""
        ...

    @property
    def is_idle(self) -> bool:
        """True when the next turn has nothing to do but commands, and what other machines begin."""
        ...

    @property
    def is_finished(self) -> bool:
        """True when no turn is to follow. Asked before each."""
        ...


class Driver(Protocol):
    """Turns something until it is finished, on a thread of its own or on an event loop."""

    def start(self) -> None: ...

    def put(self, command: Command) -> None:
        """Have a turn run it soon. Any thread."""
        ...

    @property
    def ended(self) -> Future[None]:
        """Done when the last turn is over, or at once where it was never started."""
        ...

    @property
    def is_here(self) -> bool:
        """True inside a turn."""
        ...


class Runtime(Clock, Protocol):
    """Everything of the operating system that is not I/O. Methods from any thread unless they say otherwise."""

    def random_bits(self, num_bits: int) -> int: ...

    def unique_id(self) -> str:
        """32 hexadecimal digits that nobody else draws."""
        ...

    async def to_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Run blocking ``work`` beside the event loop. A call that never ends keeps nobody from ending the process."""
        ...

    def worker(self, name: str) -> Worker:
        """A new worker; it starts with its first call."""
        ...

    def driver(self, name: str, turns: Turns) -> Driver: ...

    def wait(self, future: Future[T], timeout_s: float | None = None) -> T:
        """Block a worker's or ``to_thread``'s thread, never an event loop's. Raises TimeoutError, or the error."""
        ...

    def give_way(self) -> None:
        """Leave the interpreter to other threads for a moment."""
        ...


class SystemRuntime:
    """The machine's clock, its entropy and its threads."""

    def now_s(self) -> float:
        return time.monotonic()

    def unix_s(self) -> float:
        return time.time()

    async def sleep_s(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def random_bits(self, num_bits: int) -> int:
        return secrets.randbits(num_bits)

    def unique_id(self) -> str:
        return uuid.uuid4().hex

    async def to_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.wrap_future(_threads.submit(work, *args))

    def worker(self, name: str) -> Worker:
        return _ThreadWorker(name)

    def driver(self, name: str, turns: Turns) -> Driver:
        return _ThreadDriver(name, turns)

    def wait(self, future: Future[T], timeout_s: float | None = None) -> T:
        return future.result(timeout_s)

    def give_way(self) -> None:
        time.sleep(0)


class _DaemonThreads:
    """As many threads as there are calls under way. The interpreter's end waits for none of them."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()
        self._lock = threading.Lock()
        self._num_idle = 0

    def submit(self, work: Callable[..., T], *args: Any) -> Future[T]:
        future: Future[T] = Future()
        in_context = contextvars.copy_context().run
        with self._lock:
            self._queue.put((future, in_context, (work, *args)))
            if self._num_idle:
                self._num_idle -= 1  # it is that thread's now
            else:
                threading.Thread(target=self._run, name="dualpath-call", daemon=True).start()
        return future

    def _run(self) -> None:
        while True:
            try:
                future, work, args = self._queue.get(timeout=_IDLE_THREAD_S)
            except Empty:
                with self._lock:
                    if self._queue.empty():
                        self._num_idle -= 1
                        return
                continue
            _carry_out(future, work, args)
            del future, work, args
            with self._lock:
                self._num_idle += 1


_threads = _DaemonThreads()


def _carry_out(future: Future[Any], work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if future.set_running_or_notify_cancel():
        _settle(future, work, args)


def run_then(call: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
    """Run ``call``, then ``then`` with the error that ended it, or None."""
    error: Exception | None = None
    try:
        call()
    except Exception as failure:
        error = failure
    then(error)


class _ThreadWorker:
    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[tuple[Command, Callable[[Exception | None], None]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._lock = threading.Lock()
        self._is_started = self._is_closed = False

    def run(self, call: Command, then: Callable[[Exception | None], None]) -> bool:
        with self._lock:
            if self._is_closed:
                return False
            self._queue.put((call, then))
            if not self._is_started:
                self._is_started = True
                self._thread.start()
            return True

    async def call(self, work: Callable[..., T], *args: Any) -> T:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # a caller that stops waiting must not make the result an error
        if not self.run(lambda: _settle(future, work, args), _ignore):
            raise RuntimeError("the worker is closed")
        return await asyncio.wrap_future(future)

    def close(self, deadline_s: float | None = None) -> bool:
        with self._lock:
            self._is_closed = True
            self._queue.put(None)
        if self._is_started:
            self._thread.join(deadline_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            run_then(*item)
            del item  # an idle thread keeps nothing alive


def _settle(future: Future[T], work: Callable[..., T], args: tuple[Any, ...]) -> None:
    try:
        future.set_result(work(*args))
    except BaseException as error:
        future.set_exception(error)


def _ignore(_: Exception | None) -> None:
    """The future has it."""


class _ThreadDriver:
    def __init__(self, name: str, turns: Turns) -> None:
        self._turns = turns
        self._commands: SimpleQueue[Command] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._ended: Future[None] = Future()

    def start(self) -> None:
        self._thread.start()

    def put(self, command: Command) -> None:
        self._commands.put(command)

    @property
    def ended(self) -> Future[None]:
        if self._thread.ident is None and not self._ended.done():
            self._ended.set_result(None)
        return self._ended

    @property
    def is_here(self) -> bool:
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        turns = self._turns
        _tighten_timers()
        try:
            while not turns.is_finished:
                turns.turn(self._take(turns.wait_s()))
        finally:
            self._ended.set_result(None)

    def _take(self, wait_s: float) -> list[Command]:
        taken: list[Command] = []
        with suppress(Empty):
            taken.append(self._commands.get(wait_s > 0, wait_s))
            while True:
                taken.append(self._commands.get_nowait())
        return taken


def _tighten_timers() -> None:
    """Linux rounds this thread's short waits up by 50 us unless told otherwise."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)
    except (AttributeError, OSError):
        return

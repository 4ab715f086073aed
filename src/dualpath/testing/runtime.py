"""A runtime on a virtual loop: threads are greenlets, so that code which blocks a thread waits in virtual time.

A fiber is a blocking call on its way. When it waits, it gives the loop back and is called again later; when code that
runs on the event loop itself would block, that is an AssertionError: on a real machine everything would stand still.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, TypeVar

import greenlet

from dualpath.core.runtime import Command, Turns, run_then
from dualpath.testing.loop import VirtualLoop

T = TypeVar("T")

_UNIX_S = 1.8e9
_THREAD_BEGINS_S = (0.0, 0.0, 0.0, 0.001, 0.02, 0.3)  # after it was asked for: a machine may be busy
_FIRST_TURN_S, _LAST_TURN_S = 5e-4, 3e-2  # between two turns of something that is not idle: ever longer


class VirtualRuntime:
    """``dualpath.core.runtime.Runtime`` for one process, or for the world around them."""

    def __init__(self, loop: VirtualLoop, seed: int | str) -> None:
        self.loop = loop
        self.chance = random.Random(f"chance {seed}")
        self.wall_offset_s = 0.0  # a wall clock may jump

    def now_s(self) -> float:
        return self.loop.now_s

    def unix_s(self) -> float:
        return _UNIX_S + self.loop.now_s + self.wall_offset_s

    async def sleep_s(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def random_bits(self, num_bits: int) -> int:
        return self.chance.getrandbits(num_bits)

    def unique_id(self) -> str:
        return f"{self.chance.getrandbits(128):032x}"

    async def to_thread(self, work: Callable[..., T], *args: Any) -> T:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        start_fiber(self, lambda: _settle(future, work, args), self.chance.choice(_THREAD_BEGINS_S))
        return await asyncio.wrap_future(future)

    def worker(self, name: str) -> VirtualWorker:
        return VirtualWorker(self)

    def driver(self, name: str, turns: Turns) -> VirtualDriver:
        return VirtualDriver(self, turns)

    def wait(self, future: Future[T], timeout_s: float | None = None) -> T:
        if not future.done():
            fiber = greenlet.getcurrent()
            if not isinstance(fiber, _Fiber):
                raise AssertionError("this would block the event loop, or the traffic thread")
            fiber.wait(future, timeout_s)
        return future.result(0)

    def block_s(self, seconds: float) -> None:
        """What a call that takes so long does to its thread."""
        try:
            self.wait(Future(), seconds)
        except TimeoutError:
            return

    def give_way(self) -> None: ...


class _Fiber(greenlet.greenlet):
    def __init__(self, runtime: VirtualRuntime, work: Callable[[], None]) -> None:
        super().__init__(work)
        self._loop = runtime.loop
        self._context = copy_context()  # of the process that it belongs to
        self._round = 0
        self._keep = runtime  # a fiber that never ends lives as long as its world

    def begin(self, after_s: float) -> None:
        self._loop.bury(self)
        self._loop.call_later(after_s, self._resume, self._round, context=self._context)

    def wait(self, future: Future[Any], timeout_s: float | None) -> None:
        """Leave until the future is done, or the time is over."""
        self._round += 1
        number = self._round
        future.add_done_callback(lambda _: self._loop.call_soon(self._resume, number, context=self._context))
        timer = None
        if timeout_s is not None:
            timer = self._loop.call_later(timeout_s, self._resume, number, context=self._context)
        assert self.parent is not None
        self.parent.switch()
        if timer is not None:
            timer.cancel()

    def _resume(self, number: int) -> None:
        if number == self._round and not self.dead:
            self._round += 1
            self.parent = greenlet.getcurrent()
            self.switch()


def start_fiber(runtime: VirtualRuntime, work: Callable[[], None], after_s: float = 0.0) -> None:
    """Run blocking ``work``, which handles its own errors, beside the event loop."""
    _Fiber(runtime, work).begin(after_s)


def _settle(future: Future[T], work: Callable[..., T], args: tuple[Any, ...]) -> None:
    try:
        result = work(*args)
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(result)


class VirtualWorker:
    """One fiber after the other."""

    def __init__(self, runtime: VirtualRuntime) -> None:
        self._runtime = runtime
        self._queue: deque[tuple[Command, Callable[[Exception | None], None]]] = deque()
        self._is_running = self._is_closed = False
        self._emptied: Future[None] | None = None

    def run(self, call: Command, then: Callable[[Exception | None], None]) -> bool:
        if self._is_closed:
            return False
        self._queue.append((call, then))
        if not self._is_running:
            self._is_running = True
            start_fiber(self._runtime, self._work)
        return True

    async def call(self, work: Callable[..., T], *args: Any) -> T:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        if not self.run(lambda: _settle(future, work, args), lambda _: None):
            raise RuntimeError("the worker is closed")
        return await asyncio.wrap_future(future)

    def close(self, deadline_s: float | None = None) -> bool:
        self._is_closed = True
        if not self._is_running:
            return True
        self._emptied = self._emptied or Future()
        try:
            self._runtime.wait(self._emptied, deadline_s)
        except TimeoutError:
            return False
        return True

    def _work(self) -> None:
        while self._queue:
            run_then(*self._queue.popleft())
        self._is_running = False
        if self._emptied is not None:
            self._emptied.set_result(None)


class VirtualDriver:
    """Turns on the loop: soon after a command, and every millisecond or so while something is under way."""

    def __init__(self, runtime: VirtualRuntime, turns: Turns) -> None:
        self._runtime, self._turns = runtime, turns
        self._commands: deque[Command] = deque()
        self._next: asyncio.Handle | None = None
        self._next_s = float("inf")
        self._pause_s = _FIRST_TURN_S
        self._is_started = False
        self.is_here = False
        self._ended: Future[None] = Future()

    def start(self) -> None:
        self._is_started = True
        self._due(0.0)

    def put(self, command: Command) -> None:
        self._commands.append(command)
        if self._is_started:
            self._due(0.0)

    @property
    def ended(self) -> Future[None]:
        if not self._is_started and not self._ended.done():
            self._ended.set_result(None)
        return self._ended

    def _due(self, delay_s: float) -> None:
        loop = self._runtime.loop
        if self._next is not None:
            if self._next_s <= loop.now_s + delay_s:
                return
            self._next.cancel()
        self._next_s = loop.now_s + delay_s
        self._next = loop.call_later(delay_s, self._turn) if delay_s else loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._next, self._next_s = None, float("inf")
        if self._ended.done():
            return
        if self._turns.is_finished:
            self._ended.set_result(None)
            return
        commands = list(self._commands)
        self._commands.clear()
        self.is_here = True
        try:
            self._turns.turn(commands)
        finally:
            self.is_here = False
        if self._commands or self._turns.is_finished:
            self._due(0.0)
        elif not self._turns.is_idle:
            self._pause_s = _FIRST_TURN_S if commands else min(1.5 * self._pause_s, _LAST_TURN_S)
            self._due(self._pause_s * self._runtime.chance.uniform(0.3, 1.0))

"""A simulated process that clients connect to, over all its lives, and what becomes of their connections."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import Context

from dualpath.core.errors import DualPathError, OverloadedError
from dualpath.core.request import Request, RequestRecord, TokenEvent
from dualpath.scheduler.service import Service
from dualpath.testing.loop import Process, VirtualLoop
from dualpath.testing.parts import Surroundings
from dualpath.testing.runtime import VirtualRuntime

_RESTART_S = 1.0


class ConnectionLost(Exception):
    """The server's process has ended: what a client sees then."""


class SimServer(ABC):
    """Whoever keeps it alive starts it again a moment after its end."""

    def __init__(self, name: str, around: Surroundings, loop: VirtualLoop, log: Callable[[str], None]) -> None:
        self.name = name
        self._around, self._loop, self._log = around, loop, log
        self.num_lives = 0
        self.is_up = asyncio.Event()
        self._streams: dict[asyncio.Queue[TokenEvent | Exception], None] = {}
        self.down_at_s: list[float] = []
        self.on_killed: Callable[[SimServer], None] = lambda server: None
        self._start()

    @abstractmethod
    async def _begin(self, runtime: VirtualRuntime) -> None:
        """Return when clients are served. Raises DualPathError where it cannot."""

    @abstractmethod
    def _end(self) -> None:
        """The process has been killed: bury what it had."""

    @abstractmethod
    async def close(self) -> None:
        """An orderly end."""

    @property
    @abstractmethod
    def service(self) -> Service: ...

    # -- life ---------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.num_lives += 1
        self.process = Process(f"{self.name}#{self.num_lives}")
        self.context: Context = self.process.context()
        self.starting = self._loop.create_task(self._run(), context=self.context)

    async def _run(self) -> None:
        runtime = self._runtime = VirtualRuntime(self._loop, f"{self._around.scenario.seed} {self.process.name}")
        try:
            await self._begin(runtime)
        except DualPathError as error:  # whoever keeps the process alive starts it again
            self._log(f"{self.process.name} does not start: {error}")
            Context().run(self._kill)
            return
        self._log(f"{self.process.name} serves")
        self.is_up.set()

    @property
    def state(self) -> str:
        if self.starting.done() and self.starting.exception() is not None:
            return f"{self.process.name} failed: {self.starting.exception()!r}"
        return f"{self.process.name} {'serves' if self.is_up.is_set() else 'is starting'}"

    def kill(self) -> None:
        if self.process.is_alive and self.is_up.is_set():
            Context().run(self._kill)

    def _kill(self) -> None:
        self._log(f"{self.process.name} killed")
        self.down_at_s.append(self._loop.now_s)
        self._loop.kill(self.process)
        self._loop.bury(self.starting)
        self.is_up.clear()
        self._end()
        self.on_killed(self)
        for stream in self._streams:
            self._loop.call_soon(_tell, stream, ConnectionLost(self.process.name))
        self._streams = {}
        self._loop.call_later(_RESTART_S, self._start)

    def stop(self, for_s: float) -> None:
        process = self.process
        if process.is_alive and not process.is_stopped:
            self._log(f"{process.name} stopped for {for_s:.3f} s")
            self._loop.stop_process(process)
            self._loop.call_later(for_s, self._loop.continue_process, process, context=Context())

    def jump_wall_clock(self, seconds: float) -> None:
        self._runtime.wall_offset_s += seconds

    # -- clients ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[asyncio.Queue[TokenEvent | Exception]]:
        """A request's connection. Its queue is short: a client that does not read holds the stream up.

        It ends with an event with a finish reason or an exception; leaving the block is what a client does that goes.
        """
        queue: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue(2)
        self._streams[queue] = None
        task = self._loop.create_task(self._serve(request, queue), context=self.context)
        try:
            yield queue
        finally:
            self._streams.pop(queue, None)
            self._loop.call_soon(task.cancel, context=self.context)

    async def _serve(self, request: Request, queue: asyncio.Queue[TokenEvent | Exception]) -> None:
        try:
            if not self.service.accepts():  # as a gateway says
                raise OverloadedError("not ready")
            async for event in self.service.generate(request):
                await queue.put(event)
        except DualPathError as error:
            await queue.put(error)
        except Exception as error:
            await queue.put(AssertionError(f"not an error of ours: {error!r}"))

    def record(self, request: Request) -> RequestRecord | None:
        return self.service.record(request.request_id)


def _tell(queue: asyncio.Queue[TokenEvent | Exception], error: Exception) -> None:
    """Connections break with whatever is still in them."""
    while not queue.empty():
        queue.get_nowait()
    queue.put_nowait(error)

"""The scheduler's line to one node: sessions, batches in order, a heartbeat, and what may be said of a node in silence.

``run`` opens a session, sends and polls until either fails or nothing is heard for ``heartbeat_s``; then every call
fails at once and it tries to open again. Three things can be known of a node that does not answer:

- *silent*: it may run and write on. EngineSilentError: requests go on elsewhere, what it could write stays reserved.
- *restarted*: another incarnation answers, so the former process, with all it held and moved, is gone.
- *gone*: the runtime says that the process has ended and ``lease_s`` has passed since the last contact; a node ends
  itself when it has not heard from its scheduler for as long, so that also holds where the runtime only guessed.
  EngineGoneError, which nothing else raises: an engine that fails, by whatever error, is not gone.

Not Ray's own timeouts: a stopped process it does not notice at all, a cut link after a minute.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dualpath.core.errors import ConfigError, EngineGoneError, EngineLostError, EngineSilentError
from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.runtime import Runtime, SystemRuntime
from dualpath.protocol import wire
from dualpath.protocol.api import EngineInfo
from dualpath.protocol.calls import Calls
from dualpath.protocol.channel import Channel

T = TypeVar("T")
log = logging.getLogger(__name__)

_SLICE_S = 0.25  # silence is counted in slices, so that a stall of our own process is not held against a node


@dataclass(frozen=True, slots=True)
class LinkConfig:
    heartbeat_s: float = 3.0  # nothing heard for so long: the node is silent
    poll_wait_s: float = 0.5  # how long a node without news waits before it says so
    retry_s: float = 0.5  # between two attempts to open a session
    kill_silent_s: float = 30.0  # a process that was up and has been silent for so long is killed
    lease_s: float = 60.0  # a node without its scheduler ends itself after so long


class NodeLink:
    """Event loop only. ``start`` once, ``calls`` while it is up, ``close``."""

    def __init__(
        self,
        node_id: NodeId,
        channel: Channel,
        config: LinkConfig,
        on_down: Callable[[NodeLink, EngineLostError], None],
        progress: Callable[[str], None],
        runtime: Runtime | None = None,
        *,
        caller: str = "",
        knows: Callable[[wire.NodeReport], bool] | None = None,
    ) -> None:
        """``caller``: a gateway's name; the scheduler has none. ``knows``: whether the scheduler has told of these
        engines, so that former ones are gone; a gateway cannot tell by itself."""
        self.node_id = node_id
        self._caller, self._knows = caller, knows
        self.num_sessions = 0
        self.calls = Calls()
        self.num_batches = 0  # received with something in them
        self._channel, self._config = channel, config
        self._on_down, self._progress = on_down, progress
        self._runtime = runtime or SystemRuntime()
        self._opened: wire.Opened | None = None  # of the latest session that had engines
        self._held: tuple[tuple[EngineId, RequestId], ...] = ()
        self._callers: tuple[str, ...] = ()
        self._heard_at_s = 0.0
        self._broke_at_s = 0.0  # when the latest session ended
        self._has_asked_to_end = False
        self._ready: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def report(self) -> wire.NodeReport:
        """Of the node as it was when last heard of. After ``start``."""
        assert self._opened is not None
        assert self._opened.report is not None
        return self._opened.report

    @property
    def is_up(self) -> bool:
        return self.calls.is_open

    @property
    def silent_s(self) -> float:
        """Since the last sign of life."""
        return self._runtime.now_s() - self._heard_at_s

    @property
    def callers(self) -> Sequence[str]:
        """Gateways that the node knew of when this one first came."""
        return self._callers

    @property
    def held(self) -> Sequence[tuple[EngineId, RequestId]]:
        """What requests of an earlier scheduler held when this one first came."""
        return self._held

    def info(self, engine_id: EngineId) -> EngineInfo:
        return next(info for info in self.report.engines if info.engine_id == engine_id)

    async def start(self) -> None:
        """Return when the node's engines are ready. Raises why they cannot be."""
        self._ready = asyncio.get_running_loop().create_future()
        self._heard()
        self._task = asyncio.create_task(self.run(), name=f"link to {self.node_id}")
        await asyncio.wait([self._ready, self._task], return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            self._task.result()
        self._ready.result()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.calls.close(EngineSilentError(f"the link to {self.node_id} is closed"))

    async def run(self) -> None:
        """Until it is cancelled; raises only while the node has never been ready."""
        while True:
            session = f"{self._caller}/{self._runtime.unique_id()}" if self._caller else self._runtime.unique_id()
            opened = await self._open(session)
            self._accept(opened)
            error = self._explain(await self._serve(session))
            log.warning("%s", error)
            self._broke_at_s = self._runtime.now_s()
            self.calls.close(error)
            self._on_down(self, error)

    # -- a session ------------------------------------------------------------------------------------------------

    async def _open(self, session: str) -> wire.Opened:
        """Ask until the node's engines are ready."""
        while True:
            try:
                opened = wire.decode_opened(await self._patiently(self._channel.open(session)))
            except Exception as error:
                self._while_unreachable(error)
                await self._runtime.sleep_s(self._config.retry_s)
                continue
            self._heard()
            for line in opened.progress:
                self._progress(line)
            if opened.failure is not None:
                self._on_failed_start(opened.failure)
            elif opened.report is not None and self._is_safe(opened):
                return opened
            await self._runtime.sleep_s(self._config.retry_s)

    def _accept(self, opened: wire.Opened) -> None:
        if self._opened is None:
            self._held, self._callers = opened.held, opened.callers
        self._opened, self._has_asked_to_end = opened, False
        self.num_sessions += 1
        self.calls.open()
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    async def _serve(self, session: str) -> Exception:
        """Send and poll until one of the two fails; the other ends with it."""
        both = [asyncio.create_task(self._send(session)), asyncio.create_task(self._poll(session))]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            ends = await asyncio.gather(*both, return_exceptions=True)
        return next(end for end in ends if isinstance(end, Exception))

    async def _send(self, session: str) -> None:
        """One batch at a time: a later one never overtakes an earlier one."""
        while True:
            await self.calls.due.wait()
            self.calls.due.clear()
            batch, self.calls.outbox = self.calls.outbox, []
            if batch:
                await self._in_time(self._channel.send(session, wire.encode(batch)))

    async def _poll(self, session: str) -> None:
        while True:
            batch = wire.decode_to_scheduler(await self._in_time(self._channel.poll(session, self._config.poll_wait_s)))
            self._heard()
            self.num_batches += bool(batch)
            for message in batch:
                self.calls.take(message)

    def _heard(self) -> None:
        self._heard_at_s = self._runtime.now_s()

    async def _in_time(self, answer: Awaitable[T]) -> T:
        """The answer, or EngineSilentError after ``heartbeat_s`` in which we were awake to hear it."""
        task = asyncio.ensure_future(answer)
        try:
            for _ in range(max(1, round(self._config.heartbeat_s / _SLICE_S))):
                done, _ = await asyncio.wait([task], timeout=_SLICE_S)
                if done:
                    return task.result()
            raise EngineSilentError(f"node {self.node_id} has not answered for {self._config.heartbeat_s:g} s")
        finally:
            task.cancel()

    # -- while there is none --------------------------------------------------------------------------------------

    async def _patiently(self, answer: Awaitable[T]) -> T:
        """One question for as long as it takes: a stopped process must not find a heap of them when it wakes up."""
        task = asyncio.ensure_future(answer)
        try:
            while not (await asyncio.wait([task], timeout=1.0))[0]:
                self._while_unreachable(EngineSilentError("it says nothing"))
            return task.result()
        finally:
            task.cancel()

    def _while_unreachable(self, error: Exception) -> None:
        if self._opened is None:
            if isinstance(error, ConfigError):
                raise error
            return  # still on its first start
        if isinstance(error, EngineGoneError):
            if self.silent_s > self._config.lease_s:
                self.calls.close(EngineGoneError(f"node {self.node_id} is gone"))
        elif isinstance(error, EngineSilentError) and self._is_to_end():
            self._has_asked_to_end = True
            log.error("node %s has been silent for %.0f s: ending its process", self.node_id, self.silent_s)
            self._channel.end_process()

    def _is_to_end(self) -> bool:
        return self.silent_s > self._config.kill_silent_s and not self._has_asked_to_end

    def _is_safe(self, opened: wire.Opened) -> bool:
        """Another incarnation on another host may have been started while the former one still runs, cut off."""
        former = self._opened
        if former is None or former.report is None or opened.report is None:
            return True
        if opened.incarnation == former.incarnation:
            return True
        if self._knows is not None:
            return self._knows(opened.report)
        if opened.report.host == former.report.host:
            return True
        return self._runtime.now_s() - self._broke_at_s > self._config.lease_s

    def _on_failed_start(self, failure: wire.Failure) -> None:
        if self._opened is None:
            raise failure.error()
        log.error("node %s cannot start its engines again: %s", self.node_id, failure.message)

    def _explain(self, error: Exception) -> EngineLostError:
        """Only a new incarnation, or the lease, tells that a process is gone: for now all are silent."""
        if isinstance(error, EngineSilentError):
            return error
        return EngineSilentError(f"the link to node {self.node_id} broke: {error}")

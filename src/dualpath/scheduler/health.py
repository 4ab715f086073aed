"""Which engines are there: an engine whose status call fails is lost, and asked again until it answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from dualpath.core.errors import EngineGoneError
from dualpath.core.ids import EngineId, NodeId
from dualpath.core.runtime import Runtime
from dualpath.core.stats import EngineStats
from dualpath.engine.api import DecodeEngineClient, PrefillEngineClient
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.tasks import TaskSet

Engine: TypeAlias = PrefillEngineClient | DecodeEngineClient

_log = logging.getLogger(__name__)


class HealthEvents(Protocol):
    """Who wants to know. Called on the event loop; nothing may raise."""

    def engine_lost(self, engine_id: EngineId) -> None:
        """It does not answer: it may be running and moving bytes all the same."""
        ...

    def engine_gone(self, engine_id: EngineId) -> None:
        """A lost engine's process has ended."""
        ...

    def engine_back(self, engine_id: EngineId) -> None: ...

    def engine_asked(self, engine_id: EngineId) -> Callable[[EngineStats], None]:
        """A question for its status goes out; the result takes the answer."""
        ...


class Health:
    """Losing a request tells nothing about its engine (it may have been preempted), so the engine itself is asked."""

    def __init__(
        self,
        engines: Mapping[EngineId, Engine],
        config: SchedulerConfig,
        runtime: Runtime,
        tasks: TaskSet,
        events: HealthEvents,
    ) -> None:
        self._engines = engines
        self._config = config
        self._runtime = runtime
        self._tasks = tasks
        self._events = events
        self._lost: dict[EngineId, asyncio.Task[None]] = {}  # with the task that waits for its return
        self._probes: dict[EngineId, asyncio.Task[EngineStats | None]] = {}
        self._latest: dict[EngineId, EngineStats] = {}

    async def stats(self, engine_id: EngineId) -> EngineStats | None:
        """The engine's status, or None when it does not answer; it is then marked lost. One question at a time."""
        probe = self._probes.get(engine_id)
        if probe is None:
            probe = self._probes[engine_id] = self._tasks.spawn(self._probe(engine_id))
        return await asyncio.shield(probe)

    async def check(self, engine_id: EngineId) -> None:
        """Ask an engine that is not known to be lost."""
        if not self.is_lost(engine_id):
            await self.stats(engine_id)

    async def _probe(self, engine_id: EngineId) -> EngineStats | None:
        answered = self._events.engine_asked(engine_id)
        try:
            async with asyncio.timeout(self._config.stats_timeout_s):
                stats = await self._engines[engine_id].stats()
        except Exception as error:
            self.mark_lost(engine_id, error)
            if isinstance(error, EngineGoneError):
                self._events.engine_gone(engine_id)
            return None
        finally:
            del self._probes[engine_id]
        self._latest[engine_id] = stats
        answered(stats)
        return stats

    def is_lost(self, engine_id: EngineId) -> bool:
        return engine_id in self._lost

    def is_stalled(self, node_id: NodeId) -> bool:
        """Whether the node's storage has left a call unanswered for too long, by the latest word of its engines."""
        return node_id in self._stalled_nodes()

    @property
    def num_stalled_nodes(self) -> int:
        return len(self._stalled_nodes())

    def _stalled_nodes(self) -> set[NodeId]:
        return {
            stats.node_id
            for engine_id, stats in self._latest.items()
            if stats.storage_stalled_s > self._config.storage_stalled_s and engine_id not in self._lost
        }

    def mark_lost(self, engine_id: EngineId, reason: Exception) -> None:
        """Idempotent."""
        if engine_id not in self._lost:
            _log.error("engine %s is lost: %r", engine_id, reason)
            self._lost[engine_id] = self._tasks.spawn(self._await_return(engine_id), is_patrol=True)
            self._events.engine_lost(engine_id)

    def mark_back(self, engine_id: EngineId) -> None:
        """Idempotent."""
        waiting = self._lost.pop(engine_id, None)
        if waiting is not None:
            _log.info("engine %s is back", engine_id)
            waiting.cancel()
            self._events.engine_back(engine_id)

    def watch(self) -> None:
        """Ask every engine now and then, so that a silent one is noticed before its requests' deadlines pass."""
        for engine_id in self._engines:
            self._tasks.spawn(self._watch(engine_id), is_patrol=True)

    async def _watch(self, engine_id: EngineId) -> None:
        while True:
            await self._runtime.sleep_s(self._config.watch_interval_s)
            await self.check(engine_id)

    async def _await_return(self, engine_id: EngineId) -> None:
        while True:
            await self._runtime.sleep_s(self._config.probe_interval_s)
            if await self.stats(engine_id) is not None:
                self.mark_back(engine_id)
                return

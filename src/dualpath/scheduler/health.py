"""Which engines are there: an engine whose status call fails is lost, and asked again until it answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from dualpath.core.ids import EngineId
from dualpath.core.runtime import Clock
from dualpath.core.stats import EngineStats
from dualpath.engine.api import DecodeEngineClient, PrefillEngineClient
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.tasks import TaskSet

Engine: TypeAlias = PrefillEngineClient | DecodeEngineClient

_log = logging.getLogger(__name__)


class Health:
    """Losing a request tells nothing about its engine (it may have been preempted), so the engine itself is asked."""

    def __init__(
        self,
        engines: Mapping[EngineId, Engine],
        config: SchedulerConfig,
        clock: Clock,
        tasks: TaskSet,
        greet: Callable[[EngineId], Awaitable[None]],
        on_lost: Callable[[EngineId], None],
        on_back: Callable[[EngineId], None],
    ) -> None:
        self._engines = engines
        self._config = config
        self._clock = clock
        self._tasks = tasks
        self._greet = greet  # makes a returned engine known to its peers
        self._on_lost = on_lost
        self._on_back = on_back
        self._lost: dict[EngineId, asyncio.Task[None]] = {}  # with the task that waits for its return
        self._probes: dict[EngineId, asyncio.Task[EngineStats | None]] = {}

    async def stats(self, engine_id: EngineId) -> EngineStats | None:
        """The engine's status, or None when it does not answer; it is then marked lost. One question at a time."""
        probe = self._probes.get(engine_id)
        if probe is None:
            probe = self._probes[engine_id] = self._tasks.spawn(self._probe(engine_id))
        return await asyncio.shield(probe)

    async def _probe(self, engine_id: EngineId) -> EngineStats | None:
        try:
            async with asyncio.timeout(self._config.stats_timeout_s):
                return await self._engines[engine_id].stats()
        except Exception as error:
            self.mark_lost(engine_id, error)
            return None
        finally:
            del self._probes[engine_id]

    def is_lost(self, engine_id: EngineId) -> bool:
        return engine_id in self._lost

    def mark_lost(self, engine_id: EngineId, reason: Exception) -> None:
        """Idempotent."""
        if engine_id not in self._lost:
            _log.error("engine %s is lost: %r", engine_id, reason)
            self._lost[engine_id] = self._tasks.spawn(self._await_return(engine_id), is_patrol=True)
            self._on_lost(engine_id)

    def mark_back(self, engine_id: EngineId) -> None:
        """Idempotent."""
        waiting = self._lost.pop(engine_id, None)
        if waiting is not None:
            _log.info("engine %s is back", engine_id)
            waiting.cancel()
            self._on_back(engine_id)

    async def watch(self) -> None:
        """Ask every engine now and then, so that a silent one is noticed before its requests' deadlines pass."""
        while True:
            await self._clock.sleep_s(self._config.watch_interval_s)
            await asyncio.gather(*(self.stats(engine_id) for engine_id in self._engines if not self.is_lost(engine_id)))

    async def _await_return(self, engine_id: EngineId) -> None:
        while True:
            await self._clock.sleep_s(self._config.probe_interval_s)
            if await self.stats(engine_id) is None:
                continue
            try:
                await self._greet(engine_id)
            except Exception as error:
                _log.warning("engine %s answers, but its peers cannot reach it: %r", engine_id, error)
                continue
            self.mark_back(engine_id)
            return

"""Asks engines how they are: one whose status call fails is lost, and asked again until it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeAlias

from dualpath.core.errors import EngineGoneError
from dualpath.core.ids import EngineId, NodeId
from dualpath.core.runtime import Runtime
from dualpath.core.stats import EngineStats
from dualpath.protocol.api import DecodeEngineClient, PrefillEngineClient
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.membership import Membership
from dualpath.scheduler.tasks import TaskSet

Engine: TypeAlias = PrefillEngineClient | DecodeEngineClient


class Health:
    """Losing a request tells nothing about its engine (it may have been preempted), so the engine itself is asked.

    ``on_ask`` is called when a question goes out; its result takes the answer.
    """

    def __init__(
        self,
        engines: Mapping[EngineId, Engine],
        membership: Membership,
        config: SchedulerConfig,
        runtime: Runtime,
        tasks: TaskSet,
        on_ask: Callable[[EngineId], Callable[[EngineStats], None]],
    ) -> None:
        self._engines, self._membership = engines, membership
        self._config = config
        self._runtime = runtime
        self._tasks = tasks
        self._on_ask = on_ask
        self._returns: dict[EngineId, asyncio.Task[None]] = {}  # tasks that wait for lost engines
        self._stalled: dict[EngineId, NodeId] = {}  # engines whose node's storage has not answered for too long
        membership.on_lost.append(self._expect)
        membership.on_back.append(self._expect_no_longer)
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
        if not self._membership.is_lost(engine_id):
            await self.stats(engine_id)

    async def _probe(self, engine_id: EngineId) -> EngineStats | None:
        answered = self._on_ask(engine_id)
        try:
            async with asyncio.timeout(self._config.stats_timeout_s):
                stats = await self._engines[engine_id].stats()
        except Exception as error:
            self._membership.mark_lost(engine_id, error)
            if isinstance(error, EngineGoneError):
                self._membership.mark_gone(engine_id)
            return None
        finally:
            del self._probes[engine_id]
        self._latest[engine_id] = stats
        if stats.storage_stalled_s > self._config.storage_stalled_s:
            self._stalled[engine_id] = stats.node_id
        else:
            self._stalled.pop(engine_id, None)
        answered(stats)
        return stats

    def is_stalled(self, node_id: NodeId) -> bool:
        """Whether the node's storage has left a call unanswered for too long, by the latest word of its engines."""
        return bool(self._stalled) and node_id in self._stalled.values()

    @property
    def num_stalled_nodes(self) -> int:
        return len(set(self._stalled.values()))

    @property
    def num_lingering(self) -> int:
        """Transfers that were given up and do not end."""
        return sum(stats.transfers_lingering for stats in self._latest_of_those_there())

    def _latest_of_those_there(self) -> list[EngineStats]:
        return [stats for engine_id, stats in self._latest.items() if not self._membership.is_lost(engine_id)]

    def _expect(self, engine_id: EngineId) -> None:
        self._stalled.pop(engine_id, None)
        self._returns[engine_id] = self._tasks.spawn(self._await_return(engine_id), is_patrol=True)

    def _expect_no_longer(self, engine_id: EngineId) -> None:
        self._returns.pop(engine_id).cancel()

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
                self._membership.mark_back(engine_id)
                return

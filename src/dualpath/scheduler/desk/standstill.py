"""Pauses placement and resumes it; freezes what engines compute where requests are to be kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from dualpath.core.errors import ConfigError, DualPathError, InvalidRequestError
from dualpath.core.ids import EngineId
from dualpath.core.runtime import Runtime
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.engine_call import EngineFailure, ask
from dualpath.scheduler.health import Engine
from dualpath.scheduler.membership import Membership
from dualpath.scheduler.placer import Placer

_log = logging.getLogger(__name__)
_LOOK_S = 0.02


class Standstill:
    """Event loop only. All of it may be asked again, at any time."""

    def __init__(
        self,
        engines: Mapping[EngineId, Engine],
        membership: Membership,
        is_gone: Callable[[EngineId], bool],
        placer: Placer,
        config: SchedulerConfig,
        runtime: Runtime,
    ) -> None:
        self._engines, self._membership, self._is_gone = engines, membership, is_gone
        self._placer, self._config, self._runtime = placer, config, runtime
        self._turn = asyncio.Lock()
        self._is_paused = False
        self._is_frozen: bool | None = False  # None: as a former scheduler left them

    def leave(self) -> None:
        """Place no request, and leave engines as they are, until ``begin`` or ``end``."""
        self._is_paused, self._is_frozen = True, None
        self._placer.hold("pause")

    async def begin(self, *, freezes: bool) -> bool:
        """Place no request from now on. Engines compute nothing on return, or go on if they had been kept from it.

        Whether they stand still; False also where it is over already. Raises InvalidRequestError where one is not made
        for that: ``end`` has the others go on.
        """
        self._is_paused = True
        self._placer.hold("pause")
        if not freezes:
            await self._resume_engines()
            return False
        async with self._turn:
            if not self._is_paused:
                return False
            self._is_frozen = True
            refusals = await asyncio.gather(*(self._order(e, is_paused=True) for e in self._membership.there))
        if refusal := next(filter(None, refusals), None):
            raise InvalidRequestError(f"engines cannot be paused with their requests kept: {refusal}")
        return True

    async def until_none_runs_unseen(self, is_on: Callable[[], bool]) -> None:
        """After ``begin``: lost engines go on with what they had. Each has come back and been told, or its process has
        ended; after ``lease_s`` it has ended itself. ``is_on``: whether that is still wanted."""
        unseen = [engine_id for engine_id in self._engines if self._membership.is_lost(engine_id)]
        end_s = self._runtime.now_s() + self._config.lease_s
        while unseen and is_on():
            if self._runtime.now_s() > end_s:
                _log.warning("paused; engines that have not answered for long may still compute: %s", unseen)
                return
            await self._runtime.sleep_s(_LOOK_S)
            for engine_id in [engine_id for engine_id in unseen if not self._membership.is_lost(engine_id)]:
                async with self._turn:
                    if self._is_paused:
                        await self._order(engine_id, is_paused=self._is_frozen is True)
            unseen = [e for e in unseen if self._membership.is_lost(e) and not self._is_gone(e)]

    async def end(self) -> None:
        self._is_paused = False
        try:
            await self._resume_engines()
        finally:
            if not self._is_paused:
                self._placer.go_on("pause")

    async def ready(self, engine_id: EngineId) -> None:
        """Before an engine is given requests, bring it to where the others are. Raises EngineFailure."""
        engine = self._engines[engine_id]
        if self._is_frozen is not None:
            try:
                await self._ask(engine_id, engine.pause() if self._is_frozen else engine.resume())
            except ConfigError as error:
                raise EngineFailure(engine_id, DualPathError(str(error))) from error

    async def _resume_engines(self) -> None:
        async with self._turn:
            self._is_frozen = False
            await asyncio.gather(*(self._order(e, is_paused=False) for e in self._membership.there))

    async def _order(self, engine_id: EngineId, *, is_paused: bool) -> ConfigError | None:
        """An engine that does not do it is lost: before it is given requests again, ``ready`` tells it. One that says
        that it never can is not."""
        engine = self._engines[engine_id]
        try:
            await self._ask(engine_id, engine.pause() if is_paused else engine.resume())
        except ConfigError as error:
            return error
        except Exception as error:
            self._membership.mark_lost(engine_id, error)
        return None

    async def _ask(self, engine_id: EngineId, call: object) -> None:
        """A forward may have to end first."""
        await ask(engine_id, call, self._config.prefill_timeout_s)  # type: ignore[arg-type]

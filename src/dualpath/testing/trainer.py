"""Whoever trains what is served: brings other weights through a server; ends its pause, also where that one died."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from typing import Any

from dualpath.core.errors import DualPathError
from dualpath.core.pause import PauseMode
from dualpath.scheduler.control import Control
from dualpath.testing.loop import VirtualLoop
from dualpath.testing.scenario import Update
from dualpath.testing.server import SimServer

_RETRY_S = 1.0


class Trainer:
    """It hears of no server that is down."""

    def __init__(
        self, servers: Sequence[SimServer], loop: VirtualLoop, log: Callable[[str], None], *, outlives: bool
    ) -> None:
        """``outlives``: a pause does so with the server that was asked for it, and any other ends it."""
        self._servers, self._loop, self._log, self._outlives = servers, loop, log, outlives
        self._numbers = itertools.count()
        self._asked: dict[int, tuple[SimServer, bool]] = {}  # who, and whether for a pause
        self._num_pauses = 0  # that nobody has been asked yet to end
        self._num_turns = self._num_open = 0  # calls for a pause or its end, and those that were not answered
        self._keepers: dict[SimServer, None] = {}  # of a pause that is answered, with nothing else asked since
        self._quiet_from_s = 0.0
        self.num_updates = 0
        for server in servers:
            server.on_killed = self._lost

    @property
    def is_quiet(self) -> bool:
        """A pause holds. What was given to models in the very moment of its answer had been given before that."""
        return bool(self._keepers) and self._loop.now_s > self._quiet_from_s

    @property
    def is_busy(self) -> bool:
        return bool(self._asked or self._num_pauses)

    def bring(self, update: Update) -> None:
        server, number = self._servers[update.number % len(self._servers)], next(self._numbers)
        if server.is_up.is_set():
            self._ask(number, server, self._update(number, server, update), pauses=update.pause is not None)

    def _ask(self, number: int, server: SimServer, work: Coroutine[Any, Any, None], *, pauses: bool) -> None:
        self._asked[number] = server, pauses
        self._loop.create_task(work, context=server.context)

    async def _update(self, number: int, server: SimServer, update: Update) -> None:
        control, version = server.service.control, f"{update.weights}@{update.number}"
        try:
            if update.pause is not None:
                await self._turn(control, update.pause)
            try:
                await control.update_weights(f"/weights/{update.weights}", version)
                self.num_updates += 1
                self._log(f"weights {version}")
                await asyncio.sleep(update.for_s)
            finally:
                if update.pause is not None:
                    await self._turn(control, None)
        except DualPathError as error:
            self._log(f"no weights {version}: {error!r}")
            self._end_pause_later(number)
        finally:
            self._asked.pop(number, None)

    async def _turn(self, control: Control, mode: PauseMode | None) -> None:
        """None: go on. Calls that fail or whose server dies may take effect at any time."""
        self._keepers.clear()
        self._num_turns += 1
        number, is_alone = self._num_turns, not self._num_open  # of two at once either may be the later one
        self._num_open += 1
        await (control.resume() if mode is None else control.pause(mode))
        self._num_open -= 1
        if mode is not None and is_alone and number == self._num_turns:
            self._keepers = {server: None for server in self._servers if server.is_up.is_set()}
            self._quiet_from_s = self._loop.now_s

    async def _resume(self, number: int, server: SimServer) -> None:
        try:
            await self._turn(server.service.control, None)
            self._log(f"{server.process.name} ends a pause")
        except DualPathError:
            self._end_pause_later(number)
        finally:
            self._asked.pop(number, None)

    def _lost(self, server: SimServer) -> None:
        self._keepers.pop(server, None)  # when the last one goes the pause may be forgotten
        for number in [number for number, (asked, _) in self._asked.items() if asked is server]:
            self._end_pause_later(number)
            self._asked.pop(number, None)

    def _end_pause_later(self, number: int) -> None:
        if self._outlives and self._asked[number][1]:
            self._num_pauses += 1
            self._loop.call_later(_RETRY_S, self._end_pause, context=Context())

    def _end_pause(self) -> None:
        server, number = next((s for s in self._servers if s.is_up.is_set()), None), next(self._numbers)
        if server is None:
            self._loop.call_later(_RETRY_S, self._end_pause, context=Context())
            return
        self._num_pauses -= 1
        self._ask(number, server, self._resume(number, server), pauses=True)

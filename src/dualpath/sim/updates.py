"""Weights that change while agents run, as a trainer changes them; the live order is ``scheduler.desk.weight_updates``.

New weights are loaded while all serve. From the change on requests are placed for them: what is not computed completely
begins anew, what is decoded goes on with the KV that it has, which is of two weights and not stored. Where the store is
wiped, nothing runs from the moment at which the change is due: what has no token yet waits in the queue, what is
decoded stands still.
"""

from __future__ import annotations

from collections.abc import Sequence

from dualpath.report.updates import WIPE
from dualpath.sim.engines.decode import DecodeClock
from dualpath.sim.failures import send_back
from dualpath.sim.requests.agenda import NOTHING, Event, Events
from dualpath.sim.requests.agent import Agent
from dualpath.sim.requests.life import Life
from dualpath.sim.requests.request import Request
from dualpath.sim.spec import UpdateSpec


class Updates:
    """One at a time; what becomes due meanwhile follows at once."""

    def __init__(
        self,
        life: Life,
        clocks: Sequence[DecodeClock],
        agents: Sequence[Agent],
        spec: UpdateSpec,
        every: int,
        kind: str,
    ) -> None:
        self._life, self._clocks, self._agents = life, clocks, agents
        self._every, self._num_weights = every, spec.weights
        self._wipes = kind == WIPE
        self._takes_s = spec.load_s + spec.wipe_s if self._wipes else spec.load_s
        self._num_turns = self._num_due = 0
        self._is_under_way = False
        self.num_updates = 0

    def turn(self, now_s: float) -> Events:
        """An agent has its answer."""
        self._num_turns += 1
        if self._num_turns % self._every:
            return NOTHING
        self._num_due += 1
        return NOTHING if self._is_under_way else self._begin(now_s)

    def change(self, now_s: float) -> Events:
        """All engines change."""
        life = self._life
        self.num_updates += 1
        self._is_under_way = life.stands_still = False
        number = self.num_updates if self._num_weights is None else self.num_updates % self._num_weights
        life.storage.use_weights(number)
        if self._wipes:
            life.storage.wipe()
        for request in self._running():
            if request.handed_over_s >= 0:
                request.is_mixed = True
            elif request.placed_s < 0:
                self._look_again(request)
        events = [*self._begin_anew(now_s), *life.fetch_due(now_s)]
        return [*events, *self._begin(now_s)] if self._num_due else events

    def _begin(self, now_s: float) -> Events:
        self._num_due -= 1
        self._is_under_way = True
        events: list[Event] = [Change(now_s + self._takes_s, self)]
        if self._wipes:
            self._life.stand_still()
            events += self._begin_anew(now_s)
            for clock in self._clocks:
                clock.stall(now_s, self._takes_s)
        return events

    def _running(self) -> list[Request]:
        return [agent.request for agent in self._agents if agent.request is not None]

    def _begin_anew(self, now_s: float) -> list[Event]:
        """Prompts that are not computed completely. Those that wait for memory first: else they would get that of the
        others, and read."""
        placed = [one for one in self._running() if one.placed_s >= 0 and one.handed_over_s < 0]
        placed.sort(key=lambda one: one.reading_s >= 0)
        events: list[Event] = []
        for request in placed:
            events += send_back(self._life, request, now_s)
        return events

    def _look_again(self, request: Request) -> None:
        """It waits for engines: what it hits is another matter now."""
        life, chain, block = self._life, request.agent.chain, self._life.block_tokens
        request.hit = request.computed = min(chain.stored, (request.prompt - 1) // block * block)
        request.durable_s = chain.durable_s
        life.count(request)


class Change(Event):
    """The new weights are loaded everywhere."""

    __slots__ = ("updates",)

    def __init__(self, time_s: float, updates: Updates) -> None:
        self.time_s, self.updates = time_s, updates

    def fire(self) -> Events:
        return self.updates.change(self.time_s)

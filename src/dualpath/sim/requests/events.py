"""Everything that can happen, one small class each; what it means is in ``life`` and its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dualpath.sim.requests.agenda import NOTHING, Event, Events

if TYPE_CHECKING:
    from dualpath.sim.engines.decode import DecodeClock
    from dualpath.sim.engines.prefill import PrefillGroup
    from dualpath.sim.requests.agent import Agent
    from dualpath.sim.requests.life import Life
    from dualpath.sim.requests.placing import Scope
    from dualpath.sim.requests.request import Request


class Submit(Event):
    """An agent sends its next turn: it has just come, or has done thinking."""

    __slots__ = ("agent", "life")

    def __init__(self, time_s: float, life: Life, agent: Agent) -> None:
        self.time_s, self.life, self.agent = time_s, life, agent

    def fire(self) -> Events:
        return self.life.submit(self.agent, self.time_s)


class Fetch(Event):
    """A leader asks for work. Only the one that the life is waiting for counts."""

    __slots__ = ("life", "scope")

    def __init__(self, time_s: float, life: Life, scope: Scope) -> None:
        self.time_s, self.life, self.scope = time_s, life, scope

    def fire(self) -> Events:
        return self.life.fetch(self.scope, self.time_s) if self.time_s == self.life.fetch_s else NOTHING


class Stored(Event):
    """The last block of a placed request's hit is on storage."""

    __slots__ = ("life", "request")

    def __init__(self, time_s: float, life: Life, request: Request) -> None:
        self.time_s, self.life, self.request = time_s, life, request

    def fire(self) -> Events:
        return NOTHING if self.request.is_over else self.life.hit_stored(self.request, self.time_s)


class Written(Event):
    """A block that was written from a decode node's staging memory is on storage: the memory is free."""

    __slots__ = ("life", "request")

    def __init__(self, time_s: float, life: Life, request: Request) -> None:
        self.time_s, self.life, self.request = time_s, life, request

    def fire(self) -> Events:
        return self.life.decode.block_written(self.request, self.time_s)


class Wake(Event):
    """The first hits of an idle prefill group are there."""

    __slots__ = ("group", "life")

    def __init__(self, time_s: float, life: Life, group: PrefillGroup) -> None:
        self.time_s, self.life, self.group = time_s, life, group

    def fire(self) -> Events:
        if self.group.is_running or self.time_s != self.group.wake_s:
            return NOTHING
        return self.life.prefill.begin_forward(self.group, self.time_s)


class HalfWay(Event):
    """Half the layers of a prefill group's batches are done."""

    __slots__ = ("group", "life")

    def __init__(self, time_s: float, life: Life, group: PrefillGroup) -> None:
        self.time_s, self.life, self.group = time_s, life, group

    def fire(self) -> Events:
        return self.life.prefill.half_way(self.group, self.time_s)


class ForwardEnd(Event):
    """A prefill group has computed its batches, and their KV has moved."""

    __slots__ = ("group", "life")

    def __init__(self, time_s: float, life: Life, group: PrefillGroup) -> None:
        self.time_s, self.life, self.group = time_s, life, group

    def fire(self) -> Events:
        return self.life.prefill.end_forward(self.group, self.time_s)


class Join(Event):
    """A prompt's KV is in the decode engine's device memory."""

    __slots__ = ("life", "request")

    def __init__(self, time_s: float, life: Life, request: Request) -> None:
        self.time_s, self.life, self.request = time_s, life, request

    def fire(self) -> Events:
        request = self.request
        return NOTHING if request.is_over else self.life.decode.join(request, self.time_s)


class DecodeDue(Event):
    """Some request may have its last token; if the batch has grown meanwhile, it is not yet so far."""

    __slots__ = ("clock", "life")

    def __init__(self, time_s: float, life: Life, clock: DecodeClock) -> None:
        self.time_s, self.life, self.clock = time_s, life, clock

    def fire(self) -> Events:
        time_s, clock = self.time_s, self.clock
        return self.life.decode.end_decodes(clock, time_s) if time_s == clock.due_s else NOTHING

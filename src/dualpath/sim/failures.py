"""Engines and nodes that fail, and perhaps come back: their requests return to the queue, their work is done again.

As in the live system, tokens that a client has are not lost: a resumed request has them behind its prompt, and finds on
storage whatever of that was stored. A group that computes in lockstep goes on without its lost engines.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dualpath.core.errors import ConfigError
from dualpath.sim.engines.cluster import Cluster
from dualpath.sim.engines.decode import DecodeEngine
from dualpath.sim.engines.prefill import PrefillEngine
from dualpath.sim.requests.agenda import NOTHING, Event, Events
from dualpath.sim.requests.agent import Agent
from dualpath.sim.requests.request import Request
from dualpath.sim.spec import MAX_S

if TYPE_CHECKING:
    from dualpath.sim.requests.life import Life

Engine = PrefillEngine | DecodeEngine


@dataclass(frozen=True, slots=True)
class Failure:
    """A line of the spec."""

    time_s: float
    name: str  # of an engine or a node
    back_after_s: float | None = None

    @classmethod
    def parse(cls, text: str) -> Failure:
        """ "TIME_S NAME" or "TIME_S NAME BACK_AFTER_S"; raises ConfigError."""
        words = text.split()
        try:
            time_s, name, back_after_s = float(words[0]), words[1], float(words[2]) if len(words) == 3 else None
        except (IndexError, ValueError):
            raise ConfigError(f'[failures] events: must be "TIME_S NAME [BACK_AFTER_S]", not {text!r}') from None
        if len(words) > 3 or not 0 <= time_s <= MAX_S or (back_after_s is not None and not 0 < back_after_s <= MAX_S):
            raise ConfigError(
                f'[failures] events: must be "TIME_S NAME [BACK_AFTER_S]", times from 0 to {MAX_S:g}, not {text!r}'
            )
        return cls(time_s, name, back_after_s)

    def engines(self, cluster: Cluster) -> list[Engine]:
        """Those it means. Raises ConfigError for a name that there is not."""
        every: list[Engine] = [*cluster.prefill, *cluster.decode]
        found = [engine for engine in every if self.name in (engine.engine_id, engine.node.name)]
        if not found:
            raise ConfigError(
                f"[failures] events: no engine or node {self.name!r}; there are {every[0].node.name} to"
                f" {every[-1].node.name}, {every[0].engine_id} to {every[-1].engine_id}"
            )
        return found


class Lose(Event):
    """The engines are gone."""

    __slots__ = ("agents", "back_after_s", "engines", "life")

    def __init__(
        self, time_s: float, life: Life, agents: Sequence[Agent], engines: list[Engine], back_after_s: float | None
    ) -> None:
        self.time_s, self.life, self.agents, self.engines = time_s, life, agents, engines
        self.back_after_s = back_after_s

    def fire(self) -> Events:
        life, now_s = self.life, self.time_s
        events: list[Event] = []
        lost = [engine for engine in self.engines if not engine.is_lost]
        for engine in lost:
            engine.is_lost = True
        for agent in self.agents:
            request = agent.request
            if request is not None and request.placed_s >= 0 and _needs_lost(request):
                events += send_back(life, request, now_s)
        for engine in lost:
            life.placer.lose(engine)
        if self.back_after_s is not None:
            events.append(Return(now_s + self.back_after_s, life, lost))
        return [*events, *life.fetch_due(now_s)]


class Return(Event):
    """The engines are back, empty."""

    __slots__ = ("engines", "life")

    def __init__(self, time_s: float, life: Life, engines: list[Engine]) -> None:
        self.time_s, self.life, self.engines = time_s, life, engines

    def fire(self) -> Events:
        for engine in self.engines:
            engine.is_lost = False
            self.life.placer.bring_back(engine)
        return self.life.fetch_due(self.time_s)


def _needs_lost(request: Request) -> bool:
    return request.decode.is_lost or (request.handed_over_s < 0 and request.prefill.is_lost)


def send_back(life: Life, request: Request, now_s: float) -> Events:
    """Give up what it holds and queue what is left of it."""
    num_sent = _num_tokens_sent(request, now_s)
    request.is_over = True
    life.observer.num_resent += 1
    events = _release(life, request, now_s)
    agent, block = request.agent, life.block_tokens
    prompt, left = request.prompt + num_sent, request.generate - num_sent
    hit = min(agent.chain.stored, (prompt - 1) // block * block)
    again = Request(agent, request.sequence, request.submitted_s, now_s, prompt, left, hit)
    again.sent, again.first_token_s = request.sent + num_sent, request.first_token_s
    agent.request = again
    return [*events, *life.enqueue(again, now_s)]


def _num_tokens_sent(request: Request, now_s: float) -> int:
    """Tokens that the client has of these engines; at least one is left to generate."""
    if request.handed_over_s < 0:
        return 0
    decoded = request.decode.clock.drop(now_s, request) if request.is_joined else 0
    return min(1 + decoded, request.generate - 1)


def _release(life: Life, request: Request, now_s: float) -> Events:
    """Memory and accounts, as far as it had come; others may have waited for them."""
    events: list[Event] = []
    if request.handed_over_s >= 0:
        if not request.is_joined:
            events += life.decode.leave_staging(request, now_s)
        if not request.has_device:
            request.decode.kv.give_up(request)
        held = request.prompt + request.generate if request.has_device else 0
        return [*events, *life.decode.release(request, now_s, held)]
    if request.reading_s < 0:
        events += _leave_line(life, request, now_s)
    else:
        engine = request.prefill
        engine.ready = [entry for entry in engine.ready if entry[2] is not request]
        heapq.heapify(engine.ready)
        if request in engine.unfinished:
            engine.unfinished.remove(request)
        events += life.prefill.leave(request, now_s)
        events += life.decode.leave_staging(request, now_s)
    return [*events, *life.decode.release(request, now_s, 0)]


def _leave_line(life: Life, request: Request, now_s: float) -> Events:
    """It waits for memory: one line after the other, and holds what the lines before have given."""
    prefill, decode = request.prefill, request.decode
    life.placer.release_prefill(request)
    prefill.node.snic.queued_tokens -= request.prefill_hit
    decode.node.snic.queued_tokens -= request.decode_hit
    if request.staged < 0:
        return NOTHING  # its hit is still being written
    if decode.node.staging.give_up(request):
        return life.decode_staging_free(decode.node.staging.release(0), now_s)
    events = [*life.decode.leave_staging(request, now_s)]
    if prefill.kv.give_up(request):
        return [*events, *life.prefill_memory_free(prefill.kv.release(0), now_s)]
    prefill.node.staging.give_up(request)
    events += life.prefill_staging_free(prefill.node.staging.release(0), now_s)
    if life.reader.reserves_whole:
        events += life.prefill_memory_free(prefill.kv.release(life.reader.prompt_tokens(request)), now_s)
    return events

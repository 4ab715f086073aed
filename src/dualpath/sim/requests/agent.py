"""Agents: who they are, what their next turn is, and how much of their context is on storage."""

from __future__ import annotations

from collections.abc import Sequence

from dualpath.core.eviction_queue import Shelf
from dualpath.core.ids import BlockKey
from dualpath.sim.requests.request import Request
from dualpath.trace.trajectory import Round

_NO_SHELF = Shelf(b"", 0)


class Chain:
    """What is stored of an agent's context for one weights: whole blocks, from its start. An ``Evictable``."""

    __slots__ = ("agent", "durable_s", "is_queued", "is_unreachable", "key", "last_use", "shelf", "stored")

    def __init__(self, agent: Agent, shelf: Shelf) -> None:
        self.agent = agent
        self.stored = 0  # tokens on storage or on their way there
        self.durable_s = 0.0  # when the last of these is on storage
        self.shelf = shelf
        self.key = BlockKey(b"")  # none yet
        self.last_use = 0
        self.is_unreachable = self.is_queued = False


class Agent:
    """Replays its rounds: each prompt is everything so far and the new append (arXiv 2602.21548, section 7.1)."""

    __slots__ = ("chain", "context", "index", "known_context", "request", "rounds", "started_s", "turn")

    def __init__(self, index: int, rounds: Sequence[Round]) -> None:
        self.index = index
        self.rounds = tuple(rounds)  # the same object where it is a tuple: agents share them
        self.turn = 0  # the round that is next, or running
        self.context = 0  # tokens appended and generated so far
        self.known_context = 0  # of them, those that an observer has counted
        self.chain = Chain(self, _NO_SHELF)  # of them, what is stored for the weights that are used now
        self.request: Request | None = None
        self.started_s = 0.0

    @property
    def is_done(self) -> bool:
        return self.turn >= len(self.rounds)

    def next_request(self, sequence: int, submitted_s: float, queued_s: float, block_tokens: int) -> Request:
        """The turn's request. At most prompt - 1 tokens hit: one must be computed to get a first token."""
        one = self.rounds[self.turn]
        prompt = self.context + one.append_tokens
        stored, most = self.chain.stored, (prompt - 1) // block_tokens * block_tokens
        hit = stored if stored < most else most
        self.request = request = Request(self, sequence, submitted_s, queued_s, prompt, one.generate_tokens, hit)
        return request

    def end_turn(self, request: Request) -> None:
        """The answer is part of the context."""
        self.turn += 1
        self.context = request.prompt + request.generate
        self.request = None

"""Agents: who they are, what their next turn is, and how much of their context is on storage."""

from __future__ import annotations

from collections.abc import Sequence

from dualpath.sim.request import Request
from dualpath.trace.trajectory import Round


class Agent:
    """Replays its rounds: each prompt is everything so far and the new append (arXiv 2602.21548, section 7.1)."""

    __slots__ = ("context", "durable_s", "index", "known_context", "request", "rounds", "started_s", "stored", "turn")

    def __init__(self, index: int, rounds: Sequence[Round]) -> None:
        self.index = index
        self.rounds = tuple(rounds)  # the same object where it is a tuple: agents share them
        self.turn = 0  # the round that is next, or running
        self.context = 0  # tokens appended and generated so far
        self.known_context = 0  # of them, those that an observer has counted
        self.stored = 0  # of them, from the start, on storage or on their way there: whole blocks
        self.durable_s = 0.0  # when the last of these is on storage
        self.request: Request | None = None
        self.started_s = 0.0

    @property
    def is_done(self) -> bool:
        return self.turn >= len(self.rounds)

    def next_request(self, sequence: int, submitted_s: float, queued_s: float, block_tokens: int) -> Request:
        """The turn's request. At most prompt - 1 tokens hit: one must be computed to get a first token."""
        one = self.rounds[self.turn]
        prompt = self.context + one.append_tokens
        stored, most = self.stored, (prompt - 1) // block_tokens * block_tokens
        hit = stored if stored < most else most
        self.request = request = Request(self, sequence, submitted_s, queued_s, prompt, one.generate_tokens, hit)
        return request

    def end_turn(self, request: Request) -> None:
        """The answer is part of the context."""
        self.turn += 1
        self.context = request.prompt + request.generate
        self.request = None

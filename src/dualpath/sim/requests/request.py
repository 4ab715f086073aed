"""A simulated request: one turn of one agent, with its engines, its lengths and the moments of its life."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dualpath.scheduler.policy.waiting import Waiting

if TYPE_CHECKING:
    from dualpath.sim.engines.decode import DecodeEngine
    from dualpath.sim.engines.prefill import PrefillEngine
    from dualpath.sim.requests.agent import Agent


class Request(Waiting):
    """Mutable on purpose and without methods: every component writes its own part. Lengths in tokens, times in seconds.

    A moment that has not come is negative; what is only annotated here is not there before the moment that brings it.
    """

    __slots__ = (
        "agent",
        "computed",
        "decode",
        "decode_hit",
        "durable_s",
        "first_token_s",
        "generate",
        "handed_over_s",
        "has_device",
        "hit",
        "is_joined",
        "is_mixed",
        "is_over",
        "joined_s",
        "placed_s",
        "prefill",
        "prefill_hit",
        "prefill_staged",
        "prompt",
        "pushed",
        "queued_s",
        "reading_s",
        "ready_s",
        "sent",
        "staged",
        "started_s",
        "step_s",
        "submitted_s",
    )

    prefill: PrefillEngine  # from ``placed_s`` on
    decode: DecodeEngine
    ready_s: float  # its hits are there; from ``reading_s`` on
    joined_s: float  # it is in the decode batch
    step_s: float  # length of a decode step when it joined

    def __init__(
        self, agent: Agent, sequence: int, submitted_s: float, queued_s: float, prompt: int, generate: int, hit: int
    ) -> None:
        super().__init__(sequence)  # what it counts for is known when it is enqueued
        self.agent = agent
        self.submitted_s = submitted_s  # the client sends it
        self.queued_s = queued_s  # the scheduler has it
        self.durable_s = agent.chain.durable_s  # its last hit block is on storage
        self.prompt = prompt
        self.generate = generate
        self.hit = self.computed = hit  # tokens on storage, whole blocks; tokens whose KV exists: those, and forwards'
        self.prefill_hit = self.decode_hit = 0  # hit tokens read on each side
        self.prefill_staged = 0  # prefill staging memory that it holds
        self.staged = -1  # decode staging memory that it holds or waits for; negative: it has not asked yet
        self.sent = 0  # tokens that earlier engines, since lost, have generated: they are in the prompt now
        self.pushed = False  # the hits read on the prefill side are in the decode buffer
        self.has_device = False  # it holds decode device memory
        self.is_joined = False  # it is in the decode batch
        self.is_mixed = False  # weights have changed while it was decoded: its KV is of both, and not stored
        self.is_over = False  # finished or given up by these engines: events that still name it mean nothing
        self.placed_s = self.reading_s = self.started_s = self.handed_over_s = self.first_token_s = -1.0

"""A simulated request: one turn of one agent, with its engines, its lengths and the moments of its life."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dualpath.sim.agent import Agent
    from dualpath.sim.decode import DecodeEngine
    from dualpath.sim.prefill import PrefillEngine


class Request:
    """Mutable on purpose and without methods: every component writes its own part. Lengths in tokens, times in seconds."""

    __slots__ = (
        "agent",
        "computed",
        "decode",
        "decode_hit",
        "demand",
        "durable_s",
        "first_token_s",
        "generate",
        "handed_over_s",
        "hit",
        "is_over",
        "joined_s",
        "placed_s",
        "prefill",
        "prefill_hit",
        "prefill_load",
        "prompt",
        "pushed",
        "queued_s",
        "reading_s",
        "ready_s",
        "resent",
        "sequence",
        "staged",
        "started_s",
        "step_s",
        "submitted_s",
    )

    def __init__(
        self, agent: Agent, sequence: int, submitted_s: float, queued_s: float, prompt: int, generate: int, hit: int
    ) -> None:
        self.agent = agent
        self.sequence = sequence  # order of arrival
        self.submitted_s = submitted_s  # the client sends it
        self.queued_s = queued_s  # the scheduler has it
        self.durable_s = agent.durable_s  # its last hit block is on storage
        self.prompt = prompt
        self.generate = generate
        self.hit = hit  # prompt tokens whose KV is on storage, whole blocks
        self.demand = 0  # of the decode engine's memory
        self.prefill_load = prompt  # what it counts for in a prefill engine's tok_e
        self.prefill: PrefillEngine | None = None
        self.decode: DecodeEngine | None = None
        self.prefill_hit = 0  # hit tokens read on the prefill side
        self.decode_hit = 0
        self.staged = 0  # tokens of decode staging memory that it holds
        self.computed = hit  # prompt tokens whose KV exists: hits, and what forwards have computed
        self.pushed = False  # the hits read on the prefill side are in the decode buffer
        self.placed_s = 0.0
        self.reading_s = 0.0
        self.ready_s = 0.0
        self.started_s = -1.0  # of its first forward; negative: none yet
        self.handed_over_s = 0.0  # end of its last forward
        self.first_token_s = -1.0  # negative: none yet
        self.joined_s = 0.0
        self.step_s = 0.0  # length of a decode step when it joined
        self.resent = 0  # times it went back to the queue
        self.is_over = False  # finished or given up by these engines: events that still name it mean nothing

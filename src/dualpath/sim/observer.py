"""Watches a simulated system: what its requests went through, what it moved, how evenly it was loaded."""

from __future__ import annotations

import math
from array import array

from dualpath.sim.agent import Agent
from dualpath.sim.chrome_trace import ChromeTrace
from dualpath.sim.metrics import Table, TimeAverage
from dualpath.sim.prefill import Moved, PrefillGroup
from dualpath.sim.request import Request

LATENCIES = ("ttft", "ttst", "tpot")
PHASES = ("queued", "placed", "reading", "ready", "prefilling", "handed_over", "decoding")  # core.phase
NUM_PARTS = 4  # of the measured window, whose mean times to first token show whether a queue grows
NOT_A_NUMBER = math.nan


class Observer:
    """Requests that are submitted within [from_s, until_s) count for latencies and tokens; traffic always counts."""

    def __init__(self, from_s: float = 0.0, until_s: float = math.inf, trace: ChromeTrace | None = None) -> None:
        self.from_s, self.until_s = from_s, until_s
        self.trace = trace
        self.table = Table((*LATENCIES, *PHASES))
        self.num_requests = 0
        self.num_without_token = 0
        self.prompt_tokens = self.hit_tokens = self.generated_tokens = 0
        self.num_all_requests = self.num_resent = 0  # of the whole run
        self.moved = Moved()
        self.stored_tokens = 0
        self.part_ttft_s = [0.0] * NUM_PARTS
        self.part_requests = [0] * NUM_PARTS
        self.context = TimeAverage()  # tokens of all agents that are not done: the working set
        self.num_agents_done = 0
        self.agents_s = 0.0  # time that agents took which came within the window and are done
        self.num_agents_timed = 0
        self.end_s = 0.0  # last token of all
        self.forwards = array("d")  # rows: start, longest attention time, sum over the group's engines, engines

    def forward(self, group: PrefillGroup, start_s: float, end_s: float) -> None:
        attention = group.attention_s
        self.forwards.extend((start_s, max(attention), sum(attention), len(attention)))
        if self.trace is not None:
            for engine, batch, one_s in zip(group.engines, group.batches, attention, strict=True):
                args = {"requests": len(batch), "new_tokens": sum(new for _, new in batch), "attention_s": one_s}
                self.trace.span(engine.node.name, engine.engine_id, "forward", start_s, end_s, args)

    def first_token(self, request: Request) -> None:
        if not self.from_s <= request.submitted_s < self.until_s:
            return
        self._add_ttft(request.submitted_s, request.first_token_s - request.submitted_s)

    def _add_ttft(self, submitted_s: float, ttft_s: float) -> None:
        if self.until_s < math.inf:
            part = int(NUM_PARTS * (submitted_s - self.from_s) / (self.until_s - self.from_s))
            self.part_ttft_s[part] += ttft_s
            self.part_requests[part] += 1

    def finished(self, request: Request, now_s: float) -> None:
        """All its tokens are there."""
        self.end_s = now_s
        self.num_all_requests += 1
        agent = request.agent
        self.context.change(now_s, agent.context - agent.known_context)
        agent.known_context = agent.context
        if self.trace is not None:
            self._trace_request(request, now_s)
        if self.from_s <= request.submitted_s < self.until_s:
            self._count(request, now_s)

    def _count(self, request: Request, now_s: float) -> None:
        self.num_requests += 1
        self.prompt_tokens += request.prompt
        self.hit_tokens += request.hit
        self.generated_tokens += request.generate
        more = request.generate - 1
        first_s, joined_s = request.first_token_s, request.joined_s
        submitted_s, placed_s, reading_s = request.submitted_s, request.placed_s, request.reading_s
        ready_s, started_s, handed_over_s = request.ready_s, request.started_s, request.handed_over_s
        self.table.add(
            (
                first_s - submitted_s,
                joined_s - first_s + request.step_s if more else NOT_A_NUMBER,
                (now_s - first_s) / more if more else NOT_A_NUMBER,
                placed_s - submitted_s,
                reading_s - placed_s,
                ready_s - reading_s,
                started_s - ready_s,
                handed_over_s - started_s,
                joined_s - handed_over_s,
                now_s - joined_s,
            )
        )

    def unfinished(self, request: Request, now_s: float) -> None:
        """The measurement ends here: a request without a token counts with the time it has waited."""
        if not self.from_s <= request.submitted_s < self.until_s:
            return
        self.num_requests += 1
        self.prompt_tokens += request.prompt
        self.hit_tokens += request.hit
        ttft_s = request.first_token_s - request.submitted_s
        if request.first_token_s < 0:
            self.num_without_token += 1
            ttft_s = now_s - request.submitted_s
            self._add_ttft(request.submitted_s, ttft_s)
        self.table.add((ttft_s, *[NOT_A_NUMBER] * (len(LATENCIES) + len(PHASES) - 1)))

    def left(self, agent: Agent, now_s: float) -> None:
        """The agent is done; nobody will ask for its context again."""
        self.num_agents_done += 1
        self.context.change(now_s, -agent.context)
        if agent.started_s >= self.from_s:
            self.agents_s += now_s - agent.started_s
            self.num_agents_timed += 1

    def _trace_request(self, request: Request, now_s: float) -> None:
        assert self.trace is not None
        moments = (
            request.submitted_s,
            request.placed_s,
            request.reading_s,
            request.ready_s,
            request.started_s,
            request.handed_over_s,
            request.joined_s,
            now_s,
        )
        row = f"agent {request.agent.index}"
        args = {"prompt_tokens": request.prompt, "hit_tokens": request.hit, "generated_tokens": request.generate}
        for phase, start_s, end_s in zip(PHASES, moments[:-1], moments[1:], strict=True):
            self.trace.span("agents", row, phase, start_s, end_s, args)

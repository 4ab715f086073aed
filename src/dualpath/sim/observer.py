"""Watches a simulated system: what its requests went through, what it moved, how evenly it was loaded."""

from __future__ import annotations

import math
from array import array
from typing import Final

import numpy as np

from dualpath.sim.chrome_trace import ChromeTrace
from dualpath.sim.engines.prefill import Moved, PrefillGroup
from dualpath.sim.metrics import FloatArray, Histogram, Rows, TimeAverage
from dualpath.sim.requests.agent import Agent
from dualpath.sim.requests.request import Request

LATENCIES = ("ttft", "ttst", "tpot")
PHASES = ("queued", "placed", "reading", "ready", "prefilling", "handed_over", "decoding")  # core.phase
NUM_MOMENTS = len(PHASES) + 1  # the first columns of a row: when each phase began, and the last token
NUM_COLUMNS = NUM_MOMENTS + 6  # first token, decode step, tokens sent before, generated now, prompt, hit
NUM_PARTS: Final = 4  # of the measured window, whose mean times to first token show whether a queue grows


class Observer:
    """Requests that are submitted within [from_s, until_s) count for latencies and tokens; traffic always counts."""

    def __init__(self, from_s: float = 0.0, until_s: float = math.inf, trace: ChromeTrace | None = None) -> None:
        self.from_s, self.until_s = from_s, until_s
        self.trace = trace
        self.histograms = {name: Histogram() for name in (*LATENCIES, *PHASES)}
        self._rows = Rows(NUM_COLUMNS, self._fold)
        self.num_requests = self.prompt_tokens = self.hit_tokens = self.generated_tokens = 0
        self.num_without_token = 0
        self.num_all_requests = self.num_resent = 0  # of the whole run
        self.moved = Moved()
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
        if self.until_s < math.inf:
            self._note_ttft(request.submitted_s, request.first_token_s - request.submitted_s)

    def _note_ttft(self, submitted_s: float, ttft_s: float) -> None:
        if self.from_s <= submitted_s < self.until_s:
            part = int(NUM_PARTS * (submitted_s - self.from_s) / (self.until_s - self.from_s))
            self.part_ttft_s[part] += ttft_s
            self.part_requests[part] += 1

    def finished(self, request: Request, now_s: float) -> None:
        """All its tokens are there."""
        self.end_s = now_s
        self.num_all_requests += 1
        agent = request.agent
        context = agent.context
        self.context.change(now_s, context - agent.known_context)
        agent.known_context = context
        submitted_s = request.submitted_s
        if not self.from_s <= submitted_s < self.until_s:
            return
        row = (
            submitted_s,
            request.placed_s,
            request.reading_s,
            request.ready_s,
            request.started_s,
            request.handed_over_s,
            request.joined_s,
            now_s,
            request.first_token_s,
            request.step_s if request.is_joined else 0.0,
            request.sent,
            request.generate,
            request.prompt,
            request.hit,
        )
        self._rows.add(row)
        if self.trace is not None:
            self._trace_request(request, row[:NUM_MOMENTS])

    def _fold(self, rows: FloatArray) -> None:
        """Many requests into the histograms; a request of one token has no time to a second, and none per token."""
        submitted_s, joined_s, end_s = rows[:, 0], rows[:, NUM_MOMENTS - 2], rows[:, NUM_MOMENTS - 1]
        first_s, step_s, sent, generated, prompt, hit = rows[:, NUM_MOMENTS:].T
        more = sent + generated - 1
        self.histograms["ttft"].add(first_s - submitted_s)
        several = (more > 0) & (sent == 0)
        self.histograms["ttst"].add((joined_s - first_s + step_s)[several])
        self.histograms["tpot"].add(((end_s - first_s) / np.maximum(more, 1))[more > 0])
        for index, phase in enumerate(PHASES):
            self.histograms[phase].add(rows[:, index + 1] - rows[:, index])
        self.num_requests += len(rows)
        self.prompt_tokens += int(prompt.sum() - sent.sum())
        self.hit_tokens += int(hit.sum())
        self.generated_tokens += int((sent + generated).sum())

    def flush(self) -> None:
        """All that was seen is in the histograms and sums."""
        self._rows.flush()

    def unfinished(self, request: Request, now_s: float) -> None:
        """The measurement ends here: a request without a token counts with the time it has waited."""
        if not self.from_s <= request.submitted_s < self.until_s:
            return
        self.num_requests += 1
        self.prompt_tokens += request.prompt - request.sent
        self.hit_tokens += request.hit
        ttft_s = request.first_token_s - request.submitted_s
        if request.first_token_s < 0:
            self.num_without_token += 1
            ttft_s = now_s - request.submitted_s
            self._note_ttft(request.submitted_s, ttft_s)
        self.histograms["ttft"].add(np.array([ttft_s]))

    def left(self, agent: Agent, now_s: float) -> None:
        """The agent is done; nobody will ask for its context again."""
        self.num_agents_done += 1
        self.context.change(now_s, -agent.context)
        if agent.started_s >= self.from_s:
            self.agents_s += now_s - agent.started_s
            self.num_agents_timed += 1

    def _trace_request(self, request: Request, moments_s: tuple[float, ...]) -> None:
        assert self.trace is not None
        row = f"agent {request.agent.index}"
        args = {"prompt_tokens": request.prompt, "hit_tokens": request.hit, "generated_tokens": request.generate}
        for phase, start_s, end_s in zip(PHASES, moments_s[:-1], moments_s[1:], strict=True):
            self.trace.span("agents", row, phase, start_s, end_s, args)

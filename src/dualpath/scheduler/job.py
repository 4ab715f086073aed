"""One client request while it is served: what it has produced, its timeline and its record, over all its attempts."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from dualpath.core.ids import EngineId, RequestId
from dualpath.core.phase import TERMINAL, Phase, Timeline
from dualpath.core.request import Request, RequestRecord, TokenEvent
from dualpath.core.runtime import Clock
from dualpath.scheduler.blocks import KeyChain


def with_seed(request: Request) -> Request:
    """Randomness is a function of (seed, position): a drawn seed makes every attempt sample the same tokens."""
    if request.sampling.seed is not None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=secrets.randbits(63)))


@dataclass(slots=True)
class Stamps:
    """Monotonic moments that the record's times are made of."""

    arrived_s: float
    first_s: float | None = None
    second_s: float | None = None
    last_s: float | None = None


@dataclass(slots=True, eq=False)
class Job:
    """Written by its coordinator, read by the client's stream through ``events``. ``on_end`` is called once."""

    request: Request  # seed resolved
    sequence: int  # arrival number
    chain: KeyChain
    clock: Clock
    on_end: Callable[[Job], None]
    record: RequestRecord
    stamps: Stamps
    timeline: Timeline = field(default_factory=Timeline)
    events: asyncio.Queue[TokenEvent | Exception] = field(default_factory=asyncio.Queue)
    generated: list[int] = field(default_factory=list)
    num_failures: int = 0  # attempts that did not end by preemption: each of those has brought a token at least
    failed_on: EngineId | None = None  # the last that failed an attempt
    recomputes: bool = False  # the next attempt reads no hits: the last one's reads did not end

    @property
    def is_over(self) -> bool:
        """The client has, or will find in ``events``, everything it will ever get."""
        return self.timeline.phase in TERMINAL

    def enter(self, phase: Phase) -> None:
        """Ignored once the request is over: its last writes may still be under way."""
        if not self.is_over and self.timeline.phase is not phase:
            self.timeline.enter(phase, self.clock.now_s())

    def attempt_request(self) -> Request:
        """What the engines are asked for now: the prompt with all tokens sent so far, and that many fewer to come.

        Each attempt has an id of its own, so a late release of one never touches the next.
        """
        if self.record.num_retries == 0:
            return self.request
        return replace(
            self.request,
            request_id=RequestId(f"{self.request.request_id}~{self.record.num_retries}"),
            prompt_token_ids=(*self.request.prompt_token_ids, *self.generated),
            sampling=replace(self.request.sampling, max_tokens=self.request.sampling.max_tokens - len(self.generated)),
        )

    def emit(self, event: TokenEvent) -> None:
        """Send a token to the client. The one with a finish reason ends the request."""
        if self.is_over:
            return
        now_s = self.clock.now_s()
        self.generated.append(event.token_id)
        self.record.num_generated_tokens = len(self.generated)
        self._stamp(now_s)
        self.events.put_nowait(event)
        if event.finish_reason is not None:
            self.end(Phase.FINISHED)

    def _stamp(self, now_s: float) -> None:
        stamps, record = self.stamps, self.record
        if stamps.first_s is None:
            stamps.first_s = now_s
            record.ttft_s = now_s - stamps.arrived_s
        elif stamps.second_s is None:
            stamps.second_s = now_s
            record.ttst_s = now_s - stamps.first_s
        if len(self.generated) > 1:
            record.tpot_s = (now_s - stamps.first_s) / (len(self.generated) - 1)
        stamps.last_s = now_s

    def end(self, phase: Phase, error: Exception | None = None) -> None:
        """Close the record; an error is what the client's stream raises. Only the first call counts."""
        if self.is_over:
            return
        now_s = self.clock.now_s()
        self.timeline.enter(phase, now_s)
        self.record.outcome = phase.value
        self.record.total_s = now_s - self.stamps.arrived_s
        self.record.phases_s = self.timeline.durations_s(now_s)
        if error is not None:
            self.record.error = str(error) or type(error).__name__
            self.events.put_nowait(error)
        self.on_end(self)

    def current_record(self) -> RequestRecord:
        """The record as of now."""
        if not self.is_over:
            self.record.phases_s = self.timeline.durations_s(self.clock.now_s())
        return self.record


def new_job(request: Request, sequence: int, chain: KeyChain, clock: Clock, on_end: Callable[[Job], None]) -> Job:
    """A job that has just arrived: queued from now on."""
    record = RequestRecord(
        request_id=request.request_id,
        arrived_unix_s=time.time(),
        num_prompt_tokens=len(request.prompt_token_ids),
    )
    job = Job(with_seed(request), sequence, chain, clock, on_end, record, Stamps(clock.now_s()))
    job.enter(Phase.QUEUED)
    return job

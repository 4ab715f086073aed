"""One client request while it is served: what it has produced, its timeline and its record, over all its attempts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from dualpath.core.ids import EngineId, RequestId
from dualpath.core.latency import Latencies
from dualpath.core.one_reader import OneReader
from dualpath.core.phase import TERMINAL, Phase, Timeline
from dualpath.core.request import NO_TOKEN, Request, RequestRecord, TokenEvent, WeightSpan
from dualpath.core.runtime import Runtime
from dualpath.core.weights import WeightEpoch
from dualpath.scheduler.blocks import BlockHashes
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.retry_policy import Retries

_ORDER = {phase: number for number, phase in enumerate(Phase)}


def with_seed(request: Request, runtime: Runtime) -> Request:
    """Randomness is a function of (seed, position): a drawn seed makes every attempt sample the same tokens."""
    if request.sampling.seed is not None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=runtime.random_bits(63)))


def retry_id(request_id: RequestId, number: int) -> RequestId:
    """Each attempt has an id of its own, so a late release of one never touches the next."""
    return RequestId(f"{request_id}~{number}") if number else request_id


def first_id(request_id: RequestId) -> RequestId:
    """The request's whose attempt this may be."""
    first, _, number = request_id.rpartition("~")
    return RequestId(first) if first and number.isdecimal() else request_id


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
    sequence: int  # arrival number; below 0: not known yet
    runtime: Runtime
    retries: Retries
    on_end: Callable[[Job], None]
    record: RequestRecord
    stamps: Stamps
    timeline: Timeline = field(default_factory=Timeline)
    events: OneReader[TokenEvent | Exception] = field(default_factory=OneReader)
    token_gaps: Latencies = field(default_factory=Latencies)  # of all requests
    scope: str = ""  # before its attempts' names
    generated: list[int] = field(default_factory=list)
    furthest: Phase = Phase.QUEUED  # it has ever been in
    num_preemptions: int = 0
    failed_on: tuple[EngineId, ...] = ()  # by whom or between whom the last attempt failed
    recomputes: bool = False  # the next attempt reads no hits: they have just come to nothing
    epoch: WeightEpoch | None = None  # that the block hashes are for
    block_hashes: BlockHashes = field(init=False)

    @property
    def is_over(self) -> bool:
        """The client has, or will find in ``events``, everything it will ever get."""
        return self.timeline.phase in TERMINAL

    def enter(self, phase: Phase) -> None:
        """Ignored once the request is over: its last writes may still be under way."""
        if self.timeline.phase is phase or self.is_over:
            return
        self.timeline.enter(phase, self.runtime.now_s())
        if _ORDER[phase] > _ORDER[self.furthest]:
            self.furthest = phase
            self.retries.further()

    def attempt_request(self) -> Request:
        """What the engines are asked for now: the prompt with all tokens sent so far, and that many fewer to come."""
        if self.record.num_retries == 0 and not self.scope:
            return self.request
        sampling = self.request.sampling
        num_prompt_logprobs = None if self.generated else sampling.num_prompt_logprobs  # they came with the first token
        return replace(
            self.request,
            request_id=retry_id(RequestId(self.scope + self.request.request_id), self.record.num_retries),
            prompt_token_ids=(*self.request.prompt_token_ids, *self.generated),
            sampling=replace(
                sampling,
                max_tokens=sampling.max_tokens - len(self.generated),
                num_prompt_logprobs=num_prompt_logprobs,
            ),
            num_generated=len(self.generated),
        )

    def emit(self, event: TokenEvent, version: str = "0") -> None:
        """Send a token, made by weights of this version, to the client. One with a finish reason ends the request."""
        if self.is_over:
            return
        if event.token_id != NO_TOKEN:
            self.retries.token(is_decoded=self.timeline.phase is Phase.DECODING)
            self.generated.append(event.token_id)
            spans = self.record.weight_versions
            if not spans or spans[-1].version != version:
                self._settle(len(self.generated) - 1)
                spans.append(WeightSpan(version, len(self.generated) - 1, len(self.generated)))
            self._stamp(self.runtime.now_s())
        self.events.put(event)
        if event.finish_reason is not None:
            self.end(Phase.FINISHED)

    def _stamp(self, now_s: float) -> None:
        stamps = self.stamps
        last_s, stamps.last_s = stamps.last_s, now_s
        if last_s is None:
            stamps.first_s = now_s
            return
        if stamps.second_s is None:
            stamps.second_s = now_s
        self.token_gaps.add(now_s - last_s)

    def _settle(self, num_tokens: int) -> None:
        """What the record says of the tokens so far: when it is asked for, and not at each token."""
        stamps, record = self.stamps, self.record
        record.num_generated_tokens = num_tokens
        if record.weight_versions:
            record.weight_versions[-1].end = num_tokens
        if stamps.first_s is not None:
            record.ttft_s = stamps.first_s - stamps.arrived_s
        if stamps.second_s is not None and stamps.first_s is not None and stamps.last_s is not None:
            record.ttst_s = stamps.second_s - stamps.first_s
            record.tpot_s = (stamps.last_s - stamps.first_s) / (num_tokens - 1)

    def end(self, phase: Phase, error: Exception | None = None) -> None:
        """Close the record; an error is what the client's stream raises. Only the first call counts."""
        if self.is_over:
            return
        now_s = self.runtime.now_s()
        self.timeline.enter(phase, now_s)
        self.record.outcome = phase.value
        self.record.total_s = now_s - self.stamps.arrived_s
        self.record.phases_s = self.timeline.durations_s(now_s)
        self._settle(len(self.generated))
        if error is not None:
            self.record.error = str(error) or type(error).__name__
            self.events.put(error)
        self.on_end(self)

    def current_record(self) -> RequestRecord:
        """The record as of now."""
        if not self.is_over:
            self._settle(len(self.generated))
            self.record.phases_s = self.timeline.durations_s(self.runtime.now_s())
        return self.record


def new_job(
    request: Request,
    sequence: int,
    runtime: Runtime,
    on_end: Callable[[Job], None],
    config: SchedulerConfig | None = None,
    token_gaps: Latencies | None = None,
) -> Job:
    """A job that has just arrived: queued from now on. Its blocks are yet to be named."""
    record = RequestRecord(
        request_id=request.request_id,
        arrived_unix_s=runtime.unix_s(),
        num_prompt_tokens=len(request.prompt_token_ids),
    )
    retries = Retries(config or SchedulerConfig(), runtime)
    job = Job(
        with_seed(request, runtime), sequence, runtime, retries, on_end, record, Stamps(runtime.now_s()),
        token_gaps=token_gaps or Latencies(),
    )  # fmt: skip
    job.enter(Phase.QUEUED)
    return job

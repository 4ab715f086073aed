"""What the model costs on its engines, fitted to the recorded requests: forwards and decode steps as they really were.

A forward's time is what its requests spent in ``prefilling``, less the share in which engines stood still for
transfers: the simulator has its own idea of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dualpath.core.phase import Phase
from dualpath.core.plan import Role
from dualpath.core.request import RequestRecord
from dualpath.core.stats import ClusterStats
from dualpath.scheduler.policy.cost import DecodeCost, ForwardCost, attention_pairs, fit_decode, fit_forward
from dualpath.sim.cost import ModelCost, PrefillCost

Sample = tuple[float, float, float]
MIN_SAMPLES = 5  # of forwards, of requests that decoded
_BEFORE_PREFILL = (Phase.QUEUED, Phase.PLACED, Phase.READING, Phase.READY)
_BEFORE_DECODE = (*_BEFORE_PREFILL, Phase.PREFILLING, Phase.HANDED_OVER)


@dataclass(frozen=True, slots=True)
class Span:
    """When a request was in a phase, in seconds on the records' clock."""

    record: RequestRecord
    start_s: float
    end_s: float

    def overlap_s(self, other: Span) -> float:
        return max(0.0, min(self.end_s, other.end_s) - max(self.start_s, other.start_s))


def fit_costs(records: Sequence[RequestRecord], stats: ClusterStats, bytes_per_token: int, layers: int) -> ModelCost:
    """Raises ValueError with a reason where there are too few samples."""
    simple = [record for record in records if not record.num_retries]
    forwards = [sample for engine in _by_engine(simple, Role.PREFILL) for sample in _forwards(engine)]
    if len(forwards) < MIN_SAMPLES:
        raise ValueError(f"{len(forwards)} prefill forwards were recorded, {MIN_SAMPLES} are needed")
    computing = 1.0 - stall_share(stats)
    forwards = [(cached, new, seconds * computing) for cached, new, seconds in forwards]
    fitted = fit_forward(forwards)
    share = _missing(forwards, lambda cached, new: _forward_s(fitted, cached, new))
    prefill = ForwardCost(fitted.base_s * share, fitted.per_token_s * share, fitted.per_pair_s * share)
    steps = [sample for engine in _by_engine(simple, Role.DECODE) for sample in _steps(engine)]
    if len(steps) < MIN_SAMPLES:
        raise ValueError(f"{len(steps)} requests that decoded were recorded, {MIN_SAMPLES} are needed")
    step = fit_decode(steps)
    share = _missing(steps, lambda requests, context: _step_s(step, requests, context))
    decode = DecodeCost(step.base_s * share, step.per_request_s * share, step.per_context_token_s * share)
    return ModelCost(PrefillCost.of(prefill), decode, bytes_per_token, layers)


def _missing(samples: Sequence[Sample], predicted_s: Callable[[float, float], float]) -> float:
    """All samples' time over what was predicted: a fit of relative errors loses time where times vary much."""
    total_s = sum(predicted_s(first, second) for first, second, _ in samples)
    return sum(seconds for *_, seconds in samples) / total_s if total_s > 0 else 1.0


def _forward_s(cost: ForwardCost, cached: float, new: float) -> float:
    return cost.base_s + cost.per_token_s * new + cost.per_pair_s * new * (cached + new / 2)


def _step_s(cost: DecodeCost, requests: float, context: float) -> float:
    return cost.base_s + cost.per_request_s * requests + cost.per_context_token_s * context


def stall_share(stats: ClusterStats) -> float:
    """Of forwards' time, that in which they stood still: for history, or for new rows to leave."""
    forward_s = sum(engine.prefill_forward_s for engine in stats.engines)
    stall_s = sum(sum(engine.prefill_stall_s) + engine.prefill_push_s for engine in stats.engines)
    return min(0.99, stall_s / forward_s) if forward_s else 0.0


def _by_engine(records: Sequence[RequestRecord], role: Role) -> Iterator[list[Span]]:
    before, phase = (_BEFORE_PREFILL, Phase.PREFILLING) if role is Role.PREFILL else (_BEFORE_DECODE, Phase.DECODING)
    spans: dict[str, list[Span]] = {}
    for record in records:
        engine = record.prefill_engine if role is Role.PREFILL else record.decode_engine
        duration_s = record.phases_s.get(phase.value, 0.0)
        if engine is None or duration_s <= 0:
            continue
        start_s = record.arrived_unix_s + sum(record.phases_s.get(earlier.value, 0.0) for earlier in before)
        spans.setdefault(engine, []).append(Span(record, start_s, start_s + duration_s))
    for found in spans.values():
        yield sorted(found, key=lambda span: span.start_s)


def _forwards(spans: Sequence[Span]) -> Iterator[Sample]:
    """(cached, new, seconds) as for one request: an engine's forwards are one after the other, so that requests whose
    ``prefilling`` is at one time were in one.
    """
    batch: list[Span] = []
    for span in spans:
        if batch and span.overlap_s(batch[0]) < 0.5 * (span.end_s - span.start_s):
            yield _forward(batch)
            batch = []
        batch.append(span)
    if batch:
        yield _forward(batch)


def _forward(batch: Sequence[Span]) -> Sample:
    new = [span.record.num_prompt_tokens - span.record.num_hit_tokens for span in batch]
    pairs = sum(attention_pairs(span.record.num_hit_tokens, n) for span, n in zip(batch, new, strict=True))
    total = sum(new)
    seconds = max(span.end_s for span in batch) - min(span.start_s for span in batch)
    return pairs / total - total / 2, total, seconds


def _steps(spans: Sequence[Span]) -> Iterator[Sample]:
    """(requests, context tokens of all, seconds) of a mean step of each request that had several."""
    for span in spans:
        num_steps, length_s = span.record.num_generated_tokens - 1, span.end_s - span.start_s
        if num_steps < 1:
            continue
        shares = [(other.record, span.overlap_s(other) / length_s) for other in spans]
        context = sum(share * (r.num_prompt_tokens + r.num_generated_tokens / 2) for r, share in shares)
        yield sum(share for _, share in shares), context, length_s / num_steps

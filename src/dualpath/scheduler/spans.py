"""A request's span and those of its phases, by vLLM's and OpenTelemetry's names; made of its record when it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

from dualpath.core import tracing
from dualpath.core.phase import Phase
from dualpath.core.request import Request, RequestRecord
from dualpath.core.runtime import Runtime
from dualpath.scheduler.job import Job

OnEnd = Callable[[Job], None]
_PREFILL = (Phase.PLACED, Phase.READING, Phase.READY, Phase.PREFILLING)  # what vLLM calls prefill
_DECODE = (Phase.HANDED_OVER, Phase.DECODING)


def traced(request: Request, on_end: OnEnd, runtime: Runtime) -> tuple[Request, OnEnd]:
    """The request as engines are to have it, and what is to be called at its end. The same where it is not traced."""
    sink = tracing.sink()
    if sink is None or not request.traceparent:
        return request, on_end
    span = sink.begin("llm_request", request.traceparent, runtime.unix_s())
    return replace(request, traceparent=span.traceparent), partial(_end, span, on_end)


def _end(span: tracing.OpenSpan, on_end: OnEnd, job: Job) -> None:
    runtime = job.runtime
    to_unix_s = runtime.unix_s() - runtime.now_s()
    for (phase, start_s), (_, end_s) in pairwise(job.timeline.entries):
        tracing.add(phase.value, span.traceparent, to_unix_s + start_s, to_unix_s + end_s, {})
    span.end(runtime.unix_s(), _attributes(job.request, job.record), job.record.error)
    on_end(job)


def _attributes(request: Request, record: RequestRecord) -> tracing.Attributes:
    sampling, phases_s = request.sampling, record.phases_s
    known: dict[str, str | int | float | None] = {
        "gen_ai.request.id": record.request_id,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.usage.prompt_tokens": record.num_prompt_tokens,  # vLLM's names
        "gen_ai.usage.completion_tokens": record.num_generated_tokens,
        "gen_ai.usage.input_tokens": record.num_prompt_tokens,  # OpenTelemetry's
        "gen_ai.usage.output_tokens": record.num_generated_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.num_hit_tokens,
        "gen_ai.latency.time_in_queue": phases_s.get(Phase.QUEUED.value, 0.0),
        "gen_ai.latency.time_to_first_token": record.ttft_s,
        "gen_ai.latency.e2e": record.total_s,
        "gen_ai.latency.time_in_model_prefill": sum(phases_s.get(phase.value, 0.0) for phase in _PREFILL),
        "gen_ai.latency.time_in_model_decode": sum(phases_s.get(phase.value, 0.0) for phase in _DECODE),
        "dualpath.path": record.path,
        "dualpath.prefill_engine": record.prefill_engine,
        "dualpath.decode_engine": record.decode_engine,
        "dualpath.storage_read_bytes.prefill": record.storage_read_bytes.get("prefill", 0),
        "dualpath.storage_read_bytes.decode": record.storage_read_bytes.get("decode", 0),
        "dualpath.recomputed_blocks": record.num_recomputed_blocks,
        "dualpath.retries": record.num_retries,
        "dualpath.outcome": record.outcome,
    }
    return {name: value for name, value in known.items() if value is not None}

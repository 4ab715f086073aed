"""When an output ends: the engine's part (end of sequence, stop tokens, length). Stop strings are the gateway's."""

from __future__ import annotations

from dataclasses import replace

from dualpath.core.request import FinishReason, SamplingParams, TokenEvent
from dualpath.models.seam import ModelSpec


def finish_reason(event: TokenEvent, params: SamplingParams, num_generated: int, spec: ModelSpec) -> TokenEvent:
    """``event`` with its finish reason, if it is the request's last token; ``num_generated`` counts it."""
    stops = event.token_id in params.stop_token_ids
    # A grammar allows the end of sequence where it may end, and behind that nothing else.
    if stops or ((params.grammar or not params.ignore_eos) and event.token_id in spec.eos_token_ids):
        return replace(event, finish_reason=FinishReason.STOP)
    if num_generated >= params.max_tokens:
        return replace(event, finish_reason=FinishReason.LENGTH)
    return event

"""When an output ends: a stop token always, an end of sequence unless it is to be ignored, else the length."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dualpath.core.request import FinishReason, SamplingParams, TokenEvent
from dualpath.engine.finish import finish_reason
from dualpath.testing.hash_model import SPEC

PLAIN, STOP, EOS = 5, 6, 2


@pytest.mark.parametrize(
    ("token_id", "num_generated", "ignore_eos", "reason"),
    [
        (PLAIN, 1, False, None),
        (PLAIN, 1, True, None),
        (PLAIN, 7, True, None),
        (PLAIN, 8, True, FinishReason.LENGTH),
        (PLAIN, 9, False, FinishReason.LENGTH),
        (STOP, 1, False, FinishReason.STOP),
        (STOP, 1, True, FinishReason.STOP),
        (STOP, 8, False, FinishReason.STOP),
        (EOS, 1, False, FinishReason.STOP),
        (EOS, 1, True, None),
        (EOS, 8, True, FinishReason.LENGTH),
    ],
)
def test_an_output_ends(token_id: int, num_generated: int, ignore_eos: bool, reason: FinishReason | None) -> None:
    spec = replace(SPEC, eos_token_ids=(EOS,))
    params = SamplingParams(max_tokens=8, stop_token_ids=(STOP,), ignore_eos=ignore_eos)
    event = finish_reason(TokenEvent(token_id), params, num_generated, spec)
    assert (event.token_id, event.finish_reason) == (token_id, reason)

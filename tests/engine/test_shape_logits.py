"""Logits shaped as clients ask: vLLM's formulas, a row at a time or many at once, and no row comes to nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualpath.core.request import SamplingParams
from dualpath.engine.output_state import OutputState, is_shaped
from dualpath.engine.sampling import SampleJob, sample
from dualpath.engine.shape_logits import shape_logits
from dualpath.grammar.state import GrammarState

VOCAB, EOS = 40, 39
PLAIN = SamplingParams(max_tokens=1)


def state_of(params: SamplingParams, prompt: Sequence[int] = (), output: Sequence[int] = ()) -> OutputState:
    return OutputState(params, prompt, output, (EOS,))


def with_grammar(params: SamplingParams, *allowed: int) -> OutputState:
    grammar = GrammarState(None, VOCAB)  # type: ignore[arg-type]
    bits = np.zeros(64, dtype=np.uint8)
    bits[list(allowed)] = 1
    grammar.mask = np.packbits(bits, bitorder="little").view(np.int32)
    return OutputState(replace(params, grammar="any"), (), (), (EOS,), grammar)


def shaped(state: OutputState, logits: torch.Tensor | None = None) -> list[float]:
    row = torch.linspace(-2, 2, VOCAB).unsqueeze(0) if logits is None else logits.clone()
    shape_logits(row, [(0, state)])
    return row[0].tolist()


def truth(params: SamplingParams, prompt: Sequence[int], output: Sequence[int], logits: Sequence[float]) -> list[float]:
    """The formulas, a token at a time."""
    out = []
    for token, logit in enumerate(logits):
        logit += dict(params.logit_bias).get(token, 0.0)
        if token in (*prompt, *output):
            rate = params.repetition_penalty
            logit = logit / rate if logit > 0 else logit * rate
        times = list(output).count(token)
        out.append(logit - params.frequency_penalty * times - params.presence_penalty * (times > 0))
    return out


tokens = st.lists(st.integers(0, VOCAB - 1), max_size=80)
penalties = st.builds(
    replace,
    st.just(PLAIN),
    presence_penalty=st.sampled_from([0.0, 1.5, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.3, -0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    logit_bias=st.sampled_from([(), ((3, 5.0), (17, -100.0))]),
)


@given(st.lists(st.tuples(penalties, tokens, tokens), min_size=1, max_size=4))
def test_penalties_and_bias_follow_the_formulas_row_by_row(rows):
    logits = torch.linspace(-3, 3, VOCAB).repeat(len(rows) + 1, 1)
    right = [truth(*row, logits[0].tolist()) for row in rows]
    states = [(i, state_of(*row)) for i, row in enumerate(rows)]
    untouched = logits[-1].clone()
    shape_logits(logits, states)
    assert torch.allclose(logits[:-1], torch.tensor(right), atol=1e-4)
    assert torch.equal(logits[-1], untouched)


@given(penalties, tokens, tokens, tokens)
def test_a_state_that_took_tokens_one_by_one_is_as_one_made_behind_them(params, prompt, first, more):
    grown = state_of(params, prompt, first)
    for token in more:
        grown.take(token)
    assert shaped(grown) == shaped(state_of(params, prompt, [*first, *more]))


def test_min_tokens_forbid_ends_until_then():
    state = state_of(replace(PLAIN, min_tokens=2, stop_token_ids=(5,)))
    assert [i for i, value in enumerate(shaped(state)) if value == -math.inf] == [5, EOS]
    state.take(1)
    assert state.shapes_next
    state.take(1)
    assert not state.shapes_next
    assert -math.inf not in shaped(state)
    ignoring = state_of(replace(PLAIN, min_tokens=2, ignore_eos=True))
    assert -math.inf not in shaped(ignoring)
    in_a_grammar = state_of(replace(PLAIN, min_tokens=2, ignore_eos=True, grammar="start: /[a-z]*/"))
    assert in_a_grammar.banned() == [EOS], "it ends an answer that has a form, whatever is ignored"


def test_bad_words_are_not_completed():
    state = state_of(replace(PLAIN, bad_words=((4,), (1, 2, 3))), prompt=[1, 2], output=[7])
    assert state.banned() == [4]
    for token in (1, 2):
        state.take(token)
    assert state.banned() == [4, 3]


def test_allowed_tokens_are_the_only_ones():
    values = shaped(state_of(replace(PLAIN, allowed_token_ids=(3, 9))))
    assert [i for i, value in enumerate(values) if value > -math.inf] == [3, 9]


def test_the_grammar_comes_first():
    """Other wishes hold as far as it leaves a choice."""
    both = with_grammar(replace(PLAIN, allowed_token_ids=(3, 4)), 4, 5)
    assert [i for i, value in enumerate(shaped(both)) if value > -math.inf] == [4]
    for params in (replace(PLAIN, allowed_token_ids=(3,)), replace(PLAIN, bad_words=((5,),)), replace(PLAIN)):
        values = shaped(with_grammar(params, 5))
        assert [i for i, value in enumerate(values) if value > -math.inf] == [5]
    early = with_grammar(replace(PLAIN, min_tokens=9), EOS)
    assert [i for i, value in enumerate(shaped(early)) if value > -math.inf] == [EOS]


@pytest.mark.parametrize("filters", [{}, {"top_k": 30}, {"top_p": 0.5}, {"min_p": 0.2}, {"temperature": 0.0}], ids=str)
def test_what_is_forbidden_is_never_drawn_and_other_rows_draw_as_ever(filters):
    params = SamplingParams(max_tokens=1, seed=3, **filters)
    logits = torch.linspace(-1, 1, VOCAB).repeat(50, 1)
    alone = [event.token_id for event in sample(logits.clone(), [SampleJob(params, i) for i in range(50)])]
    jobs = [SampleJob(params, i, with_grammar(params, 2, 11) if i % 2 else None) for i in range(50)]
    drawn = [event.token_id for event in sample(logits.clone(), jobs)]
    assert set(drawn[1::2]) <= {2, 11}
    assert drawn[::2] == alone[::2]


def test_logprobs_are_the_models_own():
    params = SamplingParams(max_tokens=1, temperature=0.0, num_logprobs=3)
    logits = torch.linspace(-1, 1, VOCAB).unsqueeze(0)
    (event,) = sample(logits.clone(), [SampleJob(params, 0, with_grammar(params, 2))])
    assert event.token_id == 2
    assert event.logprob == pytest.approx(torch.log_softmax(logits, -1)[0, 2].item(), abs=1e-5)
    assert list(event.top_logprobs) == [39, 38, 37]


def test_requests_that_ask_for_nothing_have_no_state():
    assert not is_shaped(PLAIN)
    assert is_shaped(replace(PLAIN, repetition_penalty=1.1))

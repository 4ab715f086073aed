"""Sampling: greedy, filters, log probabilities, and randomness that depends on (seed, position) alone."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualpath.core.request import SamplingParams
from dualpath.engine.sampling import SampleJob, sample, uniform

LOGITS = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]]))


def draw(num: int, **params: float) -> Counter[int]:
    base = {"max_tokens": 1, "temperature": 1.0, "seed": 7} | params
    jobs = [SampleJob(SamplingParams(**base), position) for position in range(num)]  # type: ignore[arg-type]
    return Counter(e.token_id for e in sample(LOGITS.expand(num, -1), jobs))


def test_greedy_takes_the_most_likely():
    assert draw(3, temperature=0.0) == {0: 3}


def test_frequencies_follow_the_distribution():
    counts = draw(4000)
    for token, probability in enumerate([0.5, 0.25, 0.15, 0.1]):
        assert abs(counts[token] / 4000 - probability) < 4 * math.sqrt(probability / 4000)


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 1}, {0}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"top_p": 0.9}, {0, 1, 2}),
        ({"top_p": 0.6, "top_k": 3}, {0, 1}),
        ({"temperature": 0.01}, {0}),
    ],
)
def test_filters_keep_exactly_the_allowed_tokens(params, allowed):
    assert set(draw(500, **params)) == allowed


def test_the_batch_does_not_change_a_draw():
    params = SamplingParams(max_tokens=1, seed=3)
    alone = sample(LOGITS, [SampleJob(params, 11)])[0].token_id
    others = [SampleJob(SamplingParams(max_tokens=1, seed=9), 5), SampleJob(params, 11)]
    assert sample(LOGITS.expand(2, -1), others)[1].token_id == alone


def test_logprobs_are_of_the_unfiltered_distribution():
    params = SamplingParams(max_tokens=1, temperature=0.5, top_k=1, num_logprobs=2, seed=0)
    event = sample(LOGITS, [SampleJob(params, 0)])[0]
    assert event.logprob == pytest.approx(math.log(0.5), abs=1e-5)
    assert list(event.top_logprobs) == [0, 1]
    assert event.top_logprobs[1] == pytest.approx(math.log(0.25), abs=1e-5)


@given(st.integers(), st.integers(min_value=0, max_value=2**40))
def test_uniform_is_a_function_into_the_unit_interval(seed, position):
    assert 0.0 <= uniform(seed, position) < 1.0
    assert uniform(seed, position) == uniform(seed, position)


@pytest.mark.parametrize("temperature", [1e-310, 1e-20, 1e-6])
def test_a_temperature_next_to_zero_is_next_to_greedy(temperature: float) -> None:
    logits = torch.tensor([[1.0, 30.0, -5.0, 29.0]])
    params = SamplingParams(max_tokens=1, temperature=temperature, seed=3)
    assert [event.token_id for event in sample(logits, [SampleJob(params, 7)])] == [1]

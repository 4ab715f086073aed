"""The compute quota: what it predicts, and that a batch packed under it never exceeds it and never stands still."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath.engine.batch import BatchLimits, ReadyItem, pack
from dualpath.scheduler.policy.cost import DecodeCost, ForwardCost, attention_pairs, fit_decode, fit_forward
from dualpath.scheduler.policy.quota import ComputeQuota

COST = ForwardCost(base_s=0.01, per_token_s=1e-4, per_pair_s=1e-7)
ROOMY = BatchLimits(max_new_tokens=1 << 30, workspace_blocks=1 << 26, block_tokens=16)


def test_pairs_are_those_of_causal_attention():
    assert attention_pairs(0, 4) == 8  # 1 + 2 + 3 + 4 less the half of the diagonal
    assert attention_pairs(10, 1) == pytest.approx(10.5)


def test_a_batch_is_the_sum_of_its_requests():
    assert COST.forward_s([(100, 10), (0, 20)]) == pytest.approx(0.01 + 30e-4 + 1e-7 * (10 * 105 + 20 * 10))
    assert COST.attention_s([]) == 0


def test_the_request_that_would_exceed_is_cut_to_what_fits():
    quota = ComputeQuota(COST, quota_s=1e-7 * (1000 * 500 + 10 * 100), min_chunk_tokens=1)
    chunks = pack([ReadyItem(0, 1000), ReadyItem(95, 50), ReadyItem(0, 1)], ROOMY, quota)
    assert [(c.index, c.num_new) for c in chunks] == [(0, 1000), (1, 10)]


def test_without_a_history_dependent_part_nothing_is_cut():
    quota = ComputeQuota(ForwardCost(1.0, 1.0, 0.0), 0.001)
    assert quota([(9999, 9999)], 10**6, 12345) == 12345


pairs = st.tuples(st.integers(0, 100_000), st.integers(1, 10_000))


@given(st.lists(pairs, max_size=5), pairs, st.floats(1e-6, 10.0), st.integers(1, 200))
def test_the_cut_is_the_largest_that_fits(chosen, candidate, quota_s, min_chunk):
    num_cached, wanted = candidate
    quota = ComputeQuota(COST, quota_s, min_chunk)
    allowed = quota(chosen, num_cached, wanted)
    assert 0 <= allowed <= wanted
    is_free = not chosen and allowed == min(wanted, min_chunk)
    if allowed and not is_free:
        assert COST.attention_s([*chosen, (num_cached, allowed)]) <= quota_s * (1 + 1e-12)
    if allowed < wanted:
        assert COST.attention_s([*chosen, (num_cached, allowed + 1)]) > quota_s * (1 - 1e-12)


@given(st.lists(pairs, min_size=1, max_size=8), st.floats(1e-4, 1.0))
def test_packing_in_rounds_finishes_every_request_in_order(requests, quota_s):
    quota = ComputeQuota(COST, quota_s)
    left = [ReadyItem(cached, new) for cached, new in requests]
    while left:
        chunks = pack(left, ROOMY, quota)
        assert chunks, "a forward took nothing"
        batch = [(left[c.index].num_cached, c.num_new) for c in chunks]
        first_is_free = len(batch) == 1 and batch[0][1] <= quota.min_chunk_tokens
        assert first_is_free or len(batch) > 1 or COST.attention_s(batch) <= quota_s * (1 + 1e-12)
        assert COST.attention_s(batch[1:]) <= quota_s * (1 + 1e-12)
        done = len(chunks) - 1
        last = left[done]
        rest = ReadyItem(last.num_cached + chunks[-1].num_new, last.num_new - chunks[-1].num_new or 1)
        is_over = chunks[-1].num_new == last.num_new
        left = left[done + 1 :] if is_over else [rest, *left[done + 1 :]]


GRID = [(cached, new) for cached in (0, 500, 4000) for new in (16, 128, 1024)]


def test_the_fit_finds_the_coefficients_through_noise():
    source = random.Random(0)
    samples = [(c, n, COST.forward_s([(c, n)]) * source.uniform(0.97, 1.03)) for c, n in GRID]
    fitted = fit_forward(samples)
    for cached, new in GRID:
        assert fitted.forward_s([(cached, new)]) == pytest.approx(COST.forward_s([(cached, new)]), rel=0.08)
    assert fitted.per_pair_s == pytest.approx(COST.per_pair_s, rel=0.15)


@given(st.lists(st.tuples(pairs, st.floats(1e-4, 10.0)), min_size=1, max_size=12))
def test_coefficients_are_never_negative(samples):
    cost = fit_forward([(cached, new, seconds) for (cached, new), seconds in samples])
    assert min(cost.base_s, cost.per_token_s, cost.per_pair_s) >= 0
    assert cost.forward_s([(10, 10)]) > 0


def test_decode_steps_are_fitted_too():
    true = DecodeCost(0.005, 0.001, 1e-6)
    grid = [(b, b * c) for b in (1, 8, 64) for c in (100, 5000)]
    fitted = fit_decode([(b, tokens, true.step_s(b, tokens)) for b, tokens in grid])
    assert fitted.step_s(32, 32_000) == pytest.approx(true.step_s(32, 32_000))

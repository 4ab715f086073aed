"""Drawing many rows at once: the same as one by one, the tokens that the filters leave, their probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath.core.request import SamplingParams
from dualpath.engine.draw import draw

PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.just(1),
    temperature=st.sampled_from([0.01, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 7, 1500, 10**6]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.3, 1e-6]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)


def allowed(row: torch.Tensor, p: SamplingParams) -> set[int]:
    """The definition, in float64: min_p, then top_k, then top_p; tokens as likely as the last one stay too."""
    probs = torch.softmax((row.double() - row.max()) / p.temperature, dim=-1)
    probs = torch.where(probs >= p.min_p * probs.max() * (1 - 1e-6), probs, 0)
    if 0 < p.top_k < len(probs):
        probs = torch.where(probs >= probs.sort(descending=True).values[p.top_k - 1], probs, 0)
    values = probs.sort(descending=True).values / probs.sum()
    if p.top_p < 1:
        last = max(1, int(((values.cumsum(0) - values) < p.top_p * (1 + 1e-6)).sum())) - 1
        probs = torch.where(probs / probs.sum() >= values[last] * (1 - 1e-6), probs, 0)
    return set(probs.nonzero().squeeze(-1).tolist())


@settings(max_examples=60, deadline=None)
@given(st.lists(PARAMS, min_size=1, max_size=5), st.integers(0, 2**31), st.sampled_from([1, 5, 997, 3001]), st.data())
def test_a_row_is_drawn_as_it_is_alone_and_from_what_is_left(params, seed, vocab, data) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = data.draw(st.sampled_from([0.0, 1e-3, 1.0, 5.0]))
    logits = torch.randn(len(params), vocab, generator=generator) * scale
    if data.draw(st.booleans()):
        logits = logits.bfloat16().float()  # equal logits
    uniforms = [data.draw(st.floats(0, 1, exclude_max=True)) for _ in params]
    together = draw(logits, params, uniforms).tolist()
    for row, p in enumerate(params):
        assert draw(logits[row : row + 1].clone(), [p], [uniforms[row]]).tolist() == [together[row]]
        assert together[row] in allowed(logits[row], p)


@pytest.mark.parametrize("top_p", [0.1, 0.95])
def test_a_nucleus_of_more_tokens_than_are_looked_at_first(top_p: float) -> None:
    logits = torch.linspace(1e-3, 0.0, 20_000).expand(200, -1)
    params = SamplingParams(max_tokens=1, top_p=top_p)
    found = draw(logits, [params] * 200, [i / 200 for i in range(200)]).tolist()
    assert found == sorted(found)
    assert found[-1] == pytest.approx(20_000 * top_p * 199 / 200, rel=0.01)


def test_equal_logits_stay_together() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    params = SamplingParams(max_tokens=1, top_k=2)
    found = {int(draw(logits, [params], [i / 100])) for i in range(100)}
    assert found == {0, 1, 2, 3}


def test_batches_that_take_several_passes() -> None:
    logits = torch.zeros(40, 1 << 19)
    found = draw(logits, [SamplingParams(max_tokens=1)] * 40, [row / 40 for row in range(40)])
    assert found.tolist() == [row * (1 << 19) // 40 for row in range(40)]

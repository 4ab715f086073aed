"""Drawing one token for each row of logits: all rows at once, each as it would be drawn alone, without a sort.

Probabilities are whole numbers (exp of the scaled logits, in units of 2^-40 of the most likely token's): their sums are
exact, so they do not depend on the order in which a device adds, nor on what else is in the batch. ``top_k``, ``top_p``
and ``min_p`` are each a least logit that stays, in the order of vLLM: ``min_p``, then ``top_k``, then ``top_p``. Tokens
with equal logits stay or go together, so it does not matter either how a device orders them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from dualpath.core.request import SamplingParams

_UNIT = 2.0**40  # the most likely token's weight; a vocabulary of 2^22 such tokens fits 63 bits
_MIN_TEMPERATURE = 1e-30  # float32: the most likely token stays at 0, all others come to minus infinity
_NUM_SORTED = 1024  # that top_p looks at first: nearly always enough
_MAX_ELEMENTS = 1 << 23  # of logits in one pass: bounds what it needs beside them, about 24 bytes each
_MAX_ELEMENTS_CPU = 1 << 18  # what a core's cache holds


def draw(logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> torch.Tensor:
    """Token ids, int64 [R], of float32 logits [R, vocab]; ``uniforms``: a number in [0, 1) for each row."""
    max_elements = _MAX_ELEMENTS_CPU if logits.device.type == "cpu" else _MAX_ELEMENTS
    rows = max(1, max_elements // logits.shape[1])
    passes = [
        _draw(logits[start : start + rows], params[start : start + rows], uniforms[start : start + rows])
        for start in range(0, len(params), rows)
    ]
    return torch.cat(passes)


def _draw(logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> torch.Tensor:
    """Rows with top_k are made short first."""
    is_short = [0 < p.top_k < logits.shape[1] for p in params]
    out = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    for short, function in ((True, _draw_top_k), (False, _draw_any)):
        rows = [row for row, of_kind in enumerate(is_short) if of_kind is short]
        if rows:
            index = torch.tensor(rows, device=logits.device)
            out[index] = function(logits[index], [params[row] for row in rows], [uniforms[row] for row in rows])
    return out


def _draw_top_k(logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> torch.Tensor:
    """Draw from the tokens that top_k leaves alone, in the order of the vocabulary."""
    device = logits.device
    last = _column([p.top_k - 1 for p in params], torch.int64, device)
    kth = torch.topk(logits, max(p.top_k for p in params), dim=-1).values.gather(1, last)
    # Where fewer tokens than top_k are allowed, the k-th is not one of them.
    rows, token_ids = ((logits >= kth) & (logits > -math.inf)).nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(params))
    columns = torch.arange(len(rows), device=device) - (counts.cumsum(0) - counts)[rows]
    shape = (len(params), int(counts.max()))
    left = torch.full(shape, -math.inf, device=device)
    left[rows, columns] = logits[rows, token_ids]
    names = torch.zeros(shape, dtype=torch.int64, device=device)
    names[rows, columns] = token_ids
    return names.gather(1, _draw_any(left, params, uniforms).unsqueeze(-1)).squeeze(-1)


def _draw_any(logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> torch.Tensor:
    """Draw with ``top_p`` and ``min_p``; ``top_k`` has been looked at."""
    device = logits.device
    temperatures = _column([max(p.temperature, _MIN_TEMPERATURE) for p in params], torch.float32, device)
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperatures  # at most 0
    weights = _weights(scaled)
    limits = _limits(scaled, weights, params)
    if limits is not None:
        weights.masked_fill_(scaled < limits, 0)
    sums = weights.cumsum(dim=-1)
    total = sums[:, -1:]
    targets = (_column(uniforms, torch.float64, device) * total.double()).long().minimum(total - 1)
    return torch.searchsorted(sums, targets, right=True).squeeze(-1)


def _weights(scaled: torch.Tensor) -> torch.Tensor:
    return (scaled.exp() * _UNIT).long()


def _limits(scaled: torch.Tensor, weights: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor | None:
    """float32 [R, 1]: the least scaled logit that each row may draw. None: all may draw all."""
    rows = [row for row, p in enumerate(params) if p.top_p < 1]
    if not rows and not any(p.min_p > 0 for p in params):
        return None
    least = [math.log(p.min_p) if p.min_p > 0 else -math.inf for p in params]
    limits = _column(least, torch.float32, scaled.device)
    num_sorted, vocab = min(_NUM_SORTED, scaled.shape[1]), scaled.shape[1]
    while rows:
        index = torch.tensor(rows, device=scaled.device)
        chosen = [params[row] for row in rows]
        found, is_sure = _top_p_limits(scaled[index], weights[index], limits[index], chosen, num_sorted)
        limits[index] = torch.where(is_sure, found, limits[index])
        # Flat distributions: more tokens than were looked at come to less than top_p.
        rows = [row for row, sure in zip(rows, is_sure.squeeze(-1).tolist(), strict=True) if not sure]
        num_sorted = vocab
    return limits


def _top_p_limits(
    scaled: torch.Tensor, weights: torch.Tensor, limits: torch.Tensor, params: Sequence[SamplingParams], num_sorted: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(``limits`` with top_p, whether each is sure), looking at the ``num_sorted`` most likely tokens."""
    is_whole = num_sorted == scaled.shape[1]
    values = (torch.sort(scaled, descending=True) if is_whole else torch.topk(scaled, num_sorted)).values
    total = weights.masked_fill(scaled < limits, 0).sum(dim=-1, keepdim=True)
    sorted_weights = _weights(values).masked_fill_(values < limits, 0)
    before = sorted_weights.cumsum(dim=-1) - sorted_weights
    # A token stays if the mass before it is below top_p.
    mass = _column([p.top_p for p in params], torch.float64, scaled.device) * total.double()
    num_kept = (before.double() < mass).sum(dim=-1, keepdim=True).clamp(min=1)
    is_sure = (num_kept < num_sorted) | (values[:, -1:] <= limits) | is_whole
    return torch.maximum(limits, values.gather(1, num_kept - 1)), is_sure


def _column(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device).unsqueeze(-1)

"""Logits as a client wants them, before a token is drawn: grammar, allowed and banned tokens, bias, penalties.

In the order of vLLM, and by its formulas. A row never comes to nothing: what the grammar allows stays allowed where
another wish would leave no token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch.nn.functional import embedding

from dualpath.engine.output_state import OutputState

_ROWS_AT_ONCE = 64  # whose addends are in memory

Rows = Sequence[tuple[int, OutputState]]  # which row of the logits is whose


def shape_logits(logits: torch.Tensor, rows: Rows) -> None:
    """Change float32 logits [R, vocab] in place; other rows are not touched. Masks of grammars are up to date."""
    _fit_grammars(logits, [(row, state) for row, state in rows if state.grammar is not None])
    _forbid(logits, [(row, state, state.banned()) for row, state in rows])
    _add_bias(logits, [(row, state) for row, state in rows if state.params.logit_bias])
    _penalise(logits, [(row, state) for row, state in rows if state.counts is not None])


def _fit_grammars(logits: torch.Tensor, rows: Rows) -> None:
    """Masks become addends by a table of bytes: on CPUs a tenth of what unpacking bits takes."""
    table = _addends(logits.device)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[start : start + _ROWS_AT_ONCE]
        words = np.stack([state.grammar.mask for _, state in some if state.grammar is not None])
        octets = torch.from_numpy(words.view(np.uint8)).to(logits.device)
        added = embedding(octets.int(), table).flatten(1)[:, : logits.shape[1]]
        logits.index_add_(0, _tensor([row for row, _ in some], logits), added)


@lru_cache(maxsize=8)
def _addends(device: torch.device) -> torch.Tensor:
    """float32 [256, 8]: for the bits of a byte, the least first, 0 where it is set and minus infinity where not."""
    octets = torch.arange(256, device=device).unsqueeze(-1)
    return torch.where((octets >> torch.arange(8, device=device) & 1).bool(), 0.0, -math.inf)


def _forbid(logits: torch.Tensor, rows: Sequence[tuple[int, OutputState, list[int]]]) -> None:
    rows = [item for item in rows if item[2] or len(item[1].allowed)]
    if not rows:
        return
    index = _tensor([row for row, _, _ in rows], logits)
    before = logits[index]
    after = before.clone()
    for i, (_, state, banned) in enumerate(rows):
        if len(state.allowed):
            allowed = torch.from_numpy(state.allowed).to(logits.device)
            after[i] = torch.full_like(after[i], -math.inf).index_copy(0, allowed, after[i, allowed])
        if banned:
            after[i, _tensor(banned, logits)] = -math.inf
    logits[index] = torch.where(after.amax(dim=-1, keepdim=True) > -math.inf, after, before)


def _add_bias(logits: torch.Tensor, rows: Rows) -> None:
    added = [(row, token_id, value) for row, state in rows for token_id, value in state.params.logit_bias]
    if added:
        index, token_ids, values = zip(*added, strict=True)
        bias = torch.tensor(values, dtype=logits.dtype, device=logits.device)
        logits.index_put_((_tensor(index, logits), _tensor(token_ids, logits)), bias, accumulate=True)


def _penalise(logits: torch.Tensor, rows: Rows) -> None:
    told = [(row, state.params, state.counts) for row, state in rows if state.counts is not None and len(state.counts)]
    if not told:
        return
    device = logits.device
    sizes = [len(counts) for _, _, counts in told]
    token_ids = torch.from_numpy(np.concatenate([counts.ids for _, _, counts in told])).to(device)
    times = torch.from_numpy(np.concatenate([counts.counts for _, _, counts in told])).to(device)
    columns = [(row, p.repetition_penalty, p.frequency_penalty, p.presence_penalty) for row, p, _ in told]
    index, repetition, frequency, presence = (
        torch.from_numpy(np.repeat(np.array(column, dtype=kind), sizes)).to(device)
        for column, kind in zip(zip(*columns, strict=True), (np.int64, *[np.float32] * 3), strict=True)
    )
    values = logits[index, token_ids]
    values = torch.where(values > 0, values / repetition, values * repetition)
    logits[index, token_ids] = values - frequency * times - presence * (times > 0)


def _tensor(values: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)

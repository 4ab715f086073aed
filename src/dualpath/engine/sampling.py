"""Choosing tokens from logits. Randomness depends on (seed, position) only: a resumed request goes on identically."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dualpath.core.request import SamplingParams, TokenEvent


@dataclass(frozen=True, slots=True)
class SampleJob:
    """One row of logits to sample from; ``position`` is the index of the sampled token in prompt + output."""

    params: SamplingParams
    position: int


def sample(logits: torch.Tensor, jobs: Sequence[SampleJob]) -> list[TokenEvent]:
    """One token per row of ``logits`` (float32 [B, vocab], any device). Finish reasons are the caller's business."""
    greedy = torch.argmax(logits, dim=-1).tolist()
    return [_sample_row(logits, row, job, greedy[row]) for row, job in enumerate(jobs)]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on (seed, position) and nothing else."""
    digest = hashlib.blake2b(struct.pack("<Qq", seed & (2**64 - 1), position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _sample_row(logits: torch.Tensor, row: int, job: SampleJob, greedy_id: int) -> TokenEvent:
    params = job.params
    token_id = greedy_id if params.temperature == 0.0 else _draw(logits[row], params, job.position)
    if params.num_logprobs is None:
        return TokenEvent(token_id)
    # OpenAI and vLLM report log probabilities of the model's own distribution: before temperature and filters.
    logprobs = torch.log_softmax(logits[row].float(), dim=-1)
    top = {}
    if params.num_logprobs:
        values, ids = torch.topk(logprobs, min(params.num_logprobs, logprobs.numel()))
        top = dict(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenEvent(token_id, float(logprobs[token_id]), top)


def _draw(logits: torch.Tensor, params: SamplingParams, position: int) -> int:
    """Temperature, then top-k, then top-p (the order of vLLM), then inverse transform sampling in float64."""
    wide = logits.double().cpu()
    scaled = (wide - wide.max()) / params.temperature  # at most 0: no temperature makes it infinite twice, and NaN
    k = params.top_k if 0 < params.top_k < scaled.numel() else scaled.numel()
    values, ids = torch.topk(scaled, k) if k < scaled.numel() else torch.sort(scaled, descending=True, stable=True)
    probs = torch.softmax(values, dim=-1)
    cumulative = torch.cumsum(probs, dim=-1)
    if params.top_p < 1.0:
        # Keep the smallest set whose mass reaches top_p: a token stays if the mass before it is below top_p.
        keep = max(1, int(((cumulative - probs) < params.top_p).sum()))
        cumulative = cumulative[:keep]
    target = uniform(params.seed or 0, position) * float(cumulative[-1])
    index = int(torch.searchsorted(cumulative, target, right=True))
    return int(ids[min(index, cumulative.numel() - 1)])

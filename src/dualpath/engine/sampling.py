"""Choosing tokens from logits. Randomness depends on (seed, position) only: a resumed request goes on identically."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dualpath.core.request import SamplingParams, TokenEvent
from dualpath.engine.draw import draw
from dualpath.engine.output_state import OutputState
from dualpath.engine.shape_logits import shape_logits

PromptLogprob = tuple[float, Mapping[int, float], int]  # a token's, the most likely ones', the token's rank


@dataclass(frozen=True, slots=True)
class SampleJob:
    """One row of logits to sample from; ``position`` is the index of the sampled token in prompt + output.

    ``state``: where the row's logits are shaped, what by.
    """

    params: SamplingParams
    position: int
    state: OutputState | None = None


def sample(logits: torch.Tensor, jobs: Sequence[SampleJob]) -> list[TokenEvent]:
    """One token per row of ``logits`` (float32 [B, vocab], any device), which may be changed on the way.

    Finish reasons are the caller's business.
    """
    told = [row for row, job in enumerate(jobs) if job.params.num_logprobs is not None]
    shaped = [(row, job.state) for row, job in enumerate(jobs) if job.state is not None and job.state.shapes_next]
    models_own = logits[torch.tensor(told, device=logits.device)] if told else None
    if shaped:
        shape_logits(logits, shaped)
    token_ids = torch.argmax(logits, dim=-1)
    drawn = [row for row, job in enumerate(jobs) if job.params.temperature != 0.0]
    if drawn:
        index = torch.tensor(drawn, device=logits.device)
        uniforms = [uniform(jobs[row].params.seed or 0, jobs[row].position) for row in drawn]
        token_ids[index] = draw(logits[index], [jobs[row].params for row in drawn], uniforms)
    events = [TokenEvent(token_id) for token_id in token_ids.tolist()]
    if models_own is not None:
        nums = [jobs[row].params.num_logprobs or 0 for row in told]
        for row, event in zip(told, _with_logprobs(models_own, [events[row] for row in told], nums), strict=True):
            events[row] = event
    return events


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on (seed, position) and nothing else."""
    digest = hashlib.blake2b(struct.pack("<Qq", seed & (2**64 - 1), position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _with_logprobs(logits: torch.Tensor, events: Sequence[TokenEvent], nums: Sequence[int]) -> list[TokenEvent]:
    """As OpenAI and vLLM report them: of the model's own distribution, before temperature and all that shapes it."""
    found = logprobs(logits, [event.token_id for event in events], nums)
    return [
        TokenEvent(event.token_id, value, top, rank=rank)
        for event, (value, top, rank) in zip(events, found, strict=True)
    ]


def logprobs(logits: torch.Tensor, token_ids: Sequence[int], nums: Sequence[int]) -> list[PromptLogprob]:
    """Of a token for each row, and of the row's ``nums`` most likely."""
    every = torch.log_softmax(logits.float(), dim=-1)
    chosen = every.gather(1, torch.tensor(token_ids, device=logits.device).unsqueeze(-1))
    ranks = (1 + (every > chosen).sum(dim=-1)).tolist()
    nums = [min(num, every.shape[1]) for num in nums]
    values, ids = (found.tolist() for found in torch.topk(every, max(nums), dim=-1))
    return [
        (value, dict(zip(ids[i][:num], values[i][:num], strict=True)), rank)
        for i, (value, num, rank) in enumerate(zip(chosen.squeeze(-1).tolist(), nums, ranks, strict=True))
    ]

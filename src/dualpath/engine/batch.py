"""Choosing a prefill forward batch: pure functions over what is ready and what fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReadyItem:
    """A request ready for (the rest of) its prefill."""

    num_cached: int  # tokens whose KV exists already: hits, and chunks done before
    num_new: int  # tokens still to compute, at least 1


@dataclass(frozen=True, slots=True)
class BatchLimits:
    max_new_tokens: int  # tokens computed in one forward
    workspace_blocks: int  # Layer Blocks of one layer that fit the device workspace
    block_tokens: int
    max_requests: int | None = None
    max_logits: int = 8192  # rows of logits in one forward, where each new token's are wanted


@dataclass(frozen=True, slots=True)
class Chunk:
    """Take ``num_new`` tokens of the ``index``-th ready request, its KV at workspace block ``first_block``."""

    index: int
    num_new: int
    first_block: int


# (items chosen so far as (num_cached, num_new), candidate num_cached, wanted num_new) -> num_new allowed, 0 = none.
# The compute quota of paper section 4 goes here.
Quota = Callable[[Sequence[tuple[int, int]], int, int], int]


def no_quota(chosen: Sequence[tuple[int, int]], num_cached: int, wanted: int) -> int:
    """Every token that fits in memory is allowed."""
    return wanted


def pack(ready: Sequence[ReadyItem], limits: BatchLimits, quota: Quota = no_quota) -> list[Chunk]:
    """First come, first served; the request that would exceed a limit is chunked, and packing ends with it.

    At least one token of the first request is always taken, if its history fits the workspace at all.
    """
    chunks: list[Chunk] = []
    chosen: list[tuple[int, int]] = []
    blocks_left, tokens_left = limits.workspace_blocks, limits.max_new_tokens
    for index, item in enumerate(ready):
        if limits.max_requests is not None and len(chunks) >= limits.max_requests:
            break
        room = blocks_left * limits.block_tokens - item.num_cached
        num_new = min(item.num_new, tokens_left, room)
        if num_new > 0:
            num_new = quota(chosen, item.num_cached, num_new)
        if num_new <= 0:
            break
        chunks.append(Chunk(index, num_new, limits.workspace_blocks - blocks_left))
        chosen.append((item.num_cached, num_new))
        blocks_left -= -(-(item.num_cached + num_new) // limits.block_tokens)
        tokens_left -= num_new
        if num_new < item.num_new:
            break
    return chunks

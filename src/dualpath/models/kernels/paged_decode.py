"""Decode attention over pages as one Triton kernel: any page size and head size, heads of a group read their keys once.

A context is cut into splits that run side by side, so that one long request fills a device; a second kernel joins them
by their log-sum-exp. How a context is cut depends on its own length alone: a request's result does not depend on what
else is in the batch. Heads of latent attention (key 576, value the first 512 of it) fit because a head is two parts,
the largest power of two in it and the rest. Memory behind a context is never read, so it may hold anything.

Needs ``triton``, which torch brings along where it is built for CUDA. ``TRITON_INTERPRET=1``, set before this module is
imported, runs it on CPUs for tests.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass

import torch

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as it has always been; triton 3.9 warns where nobody says

import triton
import triton.language as tl

from dualpath.models.kernels.contract import PagedBatch
from dualpath.models.kernels.merge import Attended

MAX_SPLITS = 32  # of one context
MIN_SPLIT_TOKENS = 256  # below that, joining costs more than it brings
_ALL = 1 << 30  # a window wider than any context
_LOG2E = 1.4426950408889634
_MERGED_DIMS = 128  # of the value head, by one program that joins splits


@triton.jit
def _dot(a, b, IS_REAL: tl.constexpr):
    """Summed up in float32. The interpreter would multiply the bits of bfloat16."""
    if IS_REAL:
        return tl.dot(a, b, input_precision="ieee")
    return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")


@triton.jit
def _rows(rows, is_row, dim, DIM: tl.constexpr):
    """``[rows, dims]``, zero where there is nothing."""
    return tl.load(rows[:, None] + dim[None, :], mask=is_row[:, None] & (dim < DIM)[None, :], other=0.0)


@triton.jit
def _columns(rows, is_row, dim, DIM: tl.constexpr):
    """The same as ``[dims, rows]``."""
    return tl.load(rows[None, :] + dim[:, None], mask=is_row[None, :] & (dim < DIM)[:, None], other=0.0)


@triton.jit
def _write(rows, is_row, dim, values, DIM: tl.constexpr):
    tl.store(rows[:, None] + dim[None, :], values, mask=is_row[:, None] & (dim < DIM)[None, :])


@triton.jit
def _share(length, window, TOKENS: tl.constexpr, SPLIT_TOKENS: tl.constexpr, SPLITS: tl.constexpr):
    """This split's tokens of those that the query sees: the first, and the one after the last."""
    first = tl.maximum(length - window, 0)
    own_splits = tl.minimum(tl.cdiv(length - first, SPLIT_TOKENS), SPLITS)
    per_split = tl.cdiv(tl.cdiv(length - first, own_splits), TOKENS) * TOKENS
    start = first + tl.program_id(2) * per_split
    return start, tl.minimum(start + per_split, length)


@triton.jit
def _attend_split(
    q, k, v, table, lengths, out, lse, scale, window, block_tokens, num_splits,
    q_request, q_head, k_block, k_token, k_head, v_block, v_token, v_head, table_request,
    GROUP: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    MAIN: tl.constexpr, REST: tl.constexpr, V_MAIN: tl.constexpr, V_REST: tl.constexpr, SHARED: tl.constexpr,
    HEADS: tl.constexpr, TOKENS: tl.constexpr, SPLIT_TOKENS: tl.constexpr, SPLITS: tl.constexpr, IS_REAL: tl.constexpr,
):  # fmt: skip
    """Program (request, KV head and tile of its query heads, split) -> out ``[B, Hq, splits, VALUE_DIM]``, its lse."""
    request = tl.program_id(0).to(tl.int64)
    tiles: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    kv_head = tl.program_id(1) // tiles
    in_group = (tl.program_id(1) % tiles) * HEADS + tl.arange(0, HEADS)
    is_head = in_group < GROUP
    head = (kv_head * GROUP + in_group).to(tl.int64)
    start, end = _share(tl.load(lengths + request).to(tl.int32), window, TOKENS, SPLIT_TOKENS, SPLITS)

    main, rest = tl.arange(0, MAIN), MAIN + tl.arange(0, REST)
    v_main, v_rest = tl.arange(0, V_MAIN), V_MAIN + tl.arange(0, V_REST)
    q_rows = q + request * q_request + head * q_head
    q_1 = _rows(q_rows, is_head, main, DIM)
    if DIM > MAIN:
        q_2 = _rows(q_rows, is_head, rest, DIM)
    top = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    mean_1 = tl.zeros([HEADS, V_MAIN], tl.float32)
    if VALUE_DIM > V_MAIN:
        mean_2 = tl.zeros([HEADS, V_REST], tl.float32)
    for tile_start in range(start, end, TOKENS):
        position = tile_start + tl.arange(0, TOKENS)
        is_seen = position < end
        entry = table + request * table_request + position // block_tokens
        block = tl.load(entry, mask=is_seen, other=0).to(tl.int64)  # a pool may have more than 2^31 elements
        token = (position % block_tokens).to(tl.int64)
        k_rows = k + block * k_block + token * k_token + kv_head * k_head
        k_1 = _columns(k_rows, is_seen, main, DIM)
        scores = _dot(q_1, k_1, IS_REAL)
        if DIM > MAIN:
            scores += _dot(q_2, _columns(k_rows, is_seen, rest, DIM), IS_REAL)
        scores = tl.where(is_seen[None, :], scores * scale, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        kept = tl.exp2(top - new_top)
        weight = tl.exp2(scores - new_top[:, None])
        total = total * kept + tl.sum(weight, 1)
        top = new_top
        v_rows = v + block * v_block + token * v_token + kv_head * v_head
        v_1 = tl.trans(k_1) if SHARED else _rows(v_rows, is_seen, v_main, VALUE_DIM)
        mean_1 = mean_1 * kept[:, None] + _dot(weight.to(v_1.dtype), v_1, IS_REAL)
        if VALUE_DIM > V_MAIN:
            v_2 = _rows(v_rows, is_seen, v_rest, VALUE_DIM)
            mean_2 = mean_2 * kept[:, None] + _dot(weight.to(v_2.dtype), v_2, IS_REAL)

    num_heads = GROUP * (tl.num_programs(1) // tiles)
    row = (request * num_heads + head) * num_splits + tl.program_id(2)
    tl.store(lse + row, (top + tl.log2(total)) / 1.4426950408889634, mask=is_head)  # -inf where nothing was seen
    if start < end:
        _write(out + row * VALUE_DIM, is_head, v_main, mean_1 / total[:, None], VALUE_DIM)
        if VALUE_DIM > V_MAIN:
            _write(out + row * VALUE_DIM, is_head, v_rest, mean_2 / total[:, None], VALUE_DIM)


@triton.jit
def _join_splits(
    part, part_lse, out, lse, num_splits,
    VALUE_DIM: tl.constexpr, DIMS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Program (request and head, slice of the value head); splits that have seen nothing were not written."""
    row = tl.program_id(0).to(tl.int64)
    split, dim = tl.arange(0, SPLITS), tl.program_id(1) * DIMS + tl.arange(0, DIMS)
    each = tl.load(part_lse + row * num_splits + split, mask=split < num_splits, other=float("-inf"))
    top = tl.max(each, 0)
    weight = tl.exp(each - top)
    total = tl.sum(weight, 0)
    mask = (each > float("-inf"))[:, None] & (dim < VALUE_DIM)[None, :]
    values = tl.load(part + (row * num_splits + split)[:, None] * VALUE_DIM + dim[None, :], mask=mask, other=0.0)
    mean = tl.sum(values * weight[:, None], 0) / total
    tl.store(out + row * VALUE_DIM + dim, mean, mask=dim < VALUE_DIM)
    tl.store(lse + row, top + tl.log(total), mask=tl.program_id(1) == 0)


def attend_paged(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    batch: PagedBatch,
    window: int | None,
    scale: float,
    value_dim: int,
) -> Attended:
    """q ``[B, Hq, D]``, k and v ``[num_blocks, block_tokens, Hkv, D]`` -> out ``[B, Hq, value_dim]``, lse ``[B, Hq]``.

    Elements of a head are consecutive; all else may be strided. float32, bfloat16 or float16.
    """
    requests, heads, dim = q.shape
    kv_heads, group = k.shape[2], heads // k.shape[2]
    longest = batch.max_length if window is None else min(batch.max_length, window)
    num_splits = min(-(-longest // MIN_SPLIT_TOKENS), MAX_SPLITS)
    out = q.new_empty((requests, heads, value_dim))
    lse = torch.empty((requests, heads), dtype=torch.float32, device=q.device)
    part, part_lse = out, lse
    if num_splits > 1:
        part = torch.empty((requests, heads, num_splits, value_dim), dtype=torch.float32, device=q.device)
        part_lse = lse.new_empty((requests, heads, num_splits))
    cut = _Cut.of(dim, value_dim, group, q.dtype, shared=_same_memory(k, v))
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():  # Triton launches where the thread is
        _attend_split[(requests, kv_heads * -(-group // cut.heads), num_splits)](
            q, k, v, batch.block_table, batch.lengths, part, part_lse,
            scale * _LOG2E, _ALL if window is None else window, batch.block_tokens, num_splits,
            q.stride(0), q.stride(1), *k.stride()[:3], *v.stride()[:3], batch.block_table.stride(0),
            GROUP=group, DIM=dim, VALUE_DIM=value_dim,
            MAIN=cut.main, REST=cut.rest, V_MAIN=cut.v_main, V_REST=cut.v_rest, SHARED=cut.shared,
            HEADS=cut.heads, TOKENS=cut.tokens, SPLIT_TOKENS=MIN_SPLIT_TOKENS, SPLITS=MAX_SPLITS,
            IS_REAL=q.is_cuda, num_warps=4, num_stages=cut.stages,
        )  # fmt: skip
        if num_splits > 1:
            dims = min(_MERGED_DIMS, triton.next_power_of_2(value_dim))
            _join_splits[(requests * heads, -(-value_dim // dims))](
                part, part_lse, out, lse, num_splits,
                VALUE_DIM=value_dim, DIMS=dims, SPLITS=triton.next_power_of_2(num_splits),
            )  # fmt: skip
    return out, lse


@dataclass(frozen=True, slots=True)
class _Cut:
    """The sizes of one program's tiles: powers of two, at least 16 where matrices are multiplied."""

    main: int
    rest: int
    v_main: int
    v_rest: int
    shared: bool  # values are the first part of the keys
    heads: int
    tokens: int
    stages: int

    @classmethod
    def of(cls, dim: int, value_dim: int, group: int, dtype: torch.dtype, *, shared: bool) -> _Cut:
        main, rest = _parts(dim)
        v_main, v_rest = _parts(value_dim)
        is_wide = dim > 256
        tokens = 32 if is_wide or dtype == torch.float32 else 64
        if is_wide and dtype == torch.float32:
            tokens = 16
        heads = 16 if is_wide else min(64, max(16, triton.next_power_of_2(group)))
        stages = 1 if dtype == torch.float32 else 2
        return cls(main, rest, v_main, v_rest, shared and main == v_main, heads, tokens, stages)


def _parts(dim: int) -> tuple[int, int]:
    """The largest power of two in ``dim``, and what holds the rest of it."""
    main = max(16, 1 << (dim.bit_length() - 1))
    return main, 16 if dim <= main else max(16, triton.next_power_of_2(dim - main))


def _same_memory(k: torch.Tensor, v: torch.Tensor) -> bool:
    return k.data_ptr() == v.data_ptr() and k.stride() == v.stride()

"""Attention on CPUs: PyTorch's flash kernel over strided views, so that neither history nor pages are copied.

The kernel (ATen ``_scaled_dot_product_flash_attention_for_cpu``) takes strides and fewer KV heads than query heads and
returns the lse. What it does not do: masks of booleans, causality that ends at the last key (its own starts at
the first), rows with nothing visible (it reports an lse of 0). Hence the splits below.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from dualpath.models.kernels.contract import SCRATCH_BYTES, HeadShape, PagedBatch, Split
from dualpath.models.kernels.merge import Attended, merge_two
from dualpath.models.kernels.paged_plan import PagedPlan, plan_pages

MASKED_QUERY_CHUNK = 256  # bounds an additive mask to [256, T]
WHOLE_TOKENS = 512  # of the longest context: up to here copying all of them beats merging their blocks
COPY_MIN_ROWS = 512  # from here on one copy into head-major order is cheaper than strided reads (half precision only)


class CpuKernels:
    """See ``kernels.Kernels``."""

    def prepare(self, shapes: Sequence[HeadShape]) -> dict[str, str]:
        return {str(shape): "cpu" for shape in shapes}

    def lacks_wide_heads(self, dtype: torch.dtype) -> bool:
        return False

    def attend_all(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Attended:
        heads, queries, dim = q.shape
        grouped = q.reshape(1, k.shape[1], -1, dim)  # the heads of a group are just more queries: K is read once
        out, lse = _flash(grouped, _head_major(k), _head_major(v), scale)
        return out.reshape(heads, queries, dim).transpose(0, 1), lse.reshape(heads, queries).transpose(0, 1)

    def attend_causal(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_cached: int, window: int | None, scale: float
    ) -> Attended:
        if window is not None and k.shape[0] > window:
            return self._attend_windowed(q, k, v, num_cached, window, scale)
        out, lse = _flash(q[None], _head_major(k[num_cached:]), _head_major(v[num_cached:]), scale, causal=True)
        new = out[0].transpose(0, 1), lse[0].transpose(0, 1)
        if num_cached == 0:
            return new
        return merge_two(self.attend_all(q, k[:num_cached], v[:num_cached], scale), new)

    def attend_visible(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor, scale: float
    ) -> Attended:
        parts = []
        keys, values = k.transpose(1, 2), v.transpose(1, 2)  # [B, Hkv, T, D]
        for start in range(0, q.shape[2], MASKED_QUERY_CHUNK):
            stop = start + MASKED_QUERY_CHUNK
            mask = _additive(visible[:, start:stop], q.dtype).unsqueeze(1)
            parts.append(_flash(q[:, :, start:stop], keys, values, scale, mask=mask))
        if len(parts) == 1:
            out, lse = parts[0]
        else:
            out, lse = torch.cat([out for out, _ in parts], dim=2), torch.cat([lse for _, lse in parts], dim=2)
        return out.transpose(1, 2), lse.transpose(1, 2)

    def attend_paged(
        self,
        q: torch.Tensor,
        pages: torch.Tensor,
        split: Split,
        batch: PagedBatch,
        window: int | None,
        scale: float,
        value_dim: int | None = None,
    ) -> Attended:
        if (window is None or window >= batch.max_length) and _are_short(batch, pages):
            return _attend_whole(q, pages, split, batch, scale)
        plan: PagedPlan | None = batch.memo.get(window)
        if plan is None:
            plan = batch.memo[window] = plan_pages(batch, window)
        keys, values = split(pages)  # [num_blocks, block_tokens, Hkv, D]
        requests, heads, dim = q.shape
        grouped = q.reshape(requests, keys.shape[2], -1, dim).index_select(0, plan.owners)  # [pieces, Hkv, group, D]
        parts = []
        for run in plan.runs:  # consecutive blocks: a batch of blocks, read where they lie
            blocks = slice(run.first_block, run.first_block + run.num_blocks)
            piece_q = grouped[run.first_piece : run.first_piece + run.num_blocks]
            parts.append(_flash(piece_q, keys[blocks].transpose(1, 2), values[blocks].transpose(1, 2), scale))
        if plan.gathered_blocks is not None:
            rows = pages.index_select(0, plan.gathered_blocks)
            rows.view(-1, rows.shape[-1]).index_fill_(0, plan.hidden_rows, 0)  # they may be NaN
            keys, values = split(rows)
            piece_q = grouped[-len(rows) :]
            mask = plan.gathered_mask(q.dtype)
            parts.append(_flash(piece_q, keys.transpose(1, 2), values.transpose(1, 2), scale, mask=mask))
        out, lse = plan.merge(parts)
        return out.reshape(requests, heads, dim), lse.reshape(requests, heads)

    def _attend_windowed(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_cached: int, window: int, scale: float
    ) -> Attended:
        """A few queries at a time, each time over the keys that any of them sees."""
        parts = []
        chunk = max(64, min(window, MASKED_QUERY_CHUNK))
        for start in range(0, q.shape[1], chunk):
            part = q[:, start : start + chunk]
            first, end = max(0, num_cached + start - window + 1), num_cached + start + part.shape[1]
            query = torch.arange(num_cached + start, end)[:, None]
            key = torch.arange(first, end)
            mask = _additive((key <= query) & (key > query - window), q.dtype)
            keys, values = _head_major(k[first:end]), _head_major(v[first:end])
            parts.append(_flash(part[None], keys, values, scale, mask=mask))
        return (
            torch.cat([out[0] for out, _ in parts], dim=1).transpose(0, 1),
            torch.cat([lse[0] for _, lse in parts], dim=1).transpose(0, 1),
        )


def _are_short(batch: PagedBatch, pages: torch.Tensor) -> bool:
    copied_bytes = batch.size * batch.max_length * pages.shape[-1] * pages.element_size()
    return batch.max_length <= WHOLE_TOKENS and copied_bytes <= SCRATCH_BYTES


def _attend_whole(q: torch.Tensor, pages: torch.Tensor, split: Split, batch: PagedBatch, scale: float) -> Attended:
    """Short contexts, copied: one kernel call, and nothing to merge."""
    whole = batch.memo.get("whole")
    if whole is None:
        num_blocks = -(-batch.max_length // batch.block_tokens)
        hidden = torch.arange(num_blocks * batch.block_tokens) >= batch.lengths[:, None]
        whole = batch.memo["whole"] = (
            batch.block_table[:, :num_blocks].flatten(),
            hidden.flatten().nonzero().flatten(),
            _additive(~hidden, q.dtype)[:, None, None],
        )
    blocks, hidden_rows, mask = whole
    requests, heads, dim = q.shape
    rows = pages.index_select(0, blocks)
    rows.view(-1, rows.shape[-1]).index_fill_(0, hidden_rows, 0)  # they may be NaN
    keys, values = split(rows.view(requests, -1, rows.shape[-1]))
    grouped = q.reshape(requests, keys.shape[2], -1, dim)
    out, lse = _flash(grouped, keys.transpose(1, 2), values.transpose(1, 2), scale, mask=mask)
    return out.reshape(requests, heads, dim), lse.reshape(requests, heads)


def _flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    *,
    causal: bool = False,
    mask: torch.Tensor | None = None,
) -> Attended:
    """q ``[B, Hq, N, D]``, k and v ``[B, Hkv, T, D]``, mask additive -> out like q, lse float32 ``[B, Hq, N]``."""
    if q.dtype != torch.float32 and not _has_half_arithmetic():
        mask = None if mask is None else mask.float()
        out, lse = _flash(q.float(), k.float(), v.float(), scale, causal=causal, mask=mask)
        return out.to(q.dtype), lse
    attended: Attended = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=mask, scale=scale
    )
    return attended


@cache
def _has_half_arithmetic() -> bool:
    """Without bf16 instructions the half-precision kernel emulates them: converting to float32 first took a third of
    its time (AVX2, one query over 2,048 keys)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _head_major(rows: torch.Tensor) -> torch.Tensor:
    """``[T, H, D]`` -> ``[1, H, T, D]``. Half-precision kernels repack strided K and V again and again: copy once."""
    heads = rows.transpose(0, 1).unsqueeze(0)
    if rows.dtype != torch.float32 and rows.shape[0] >= COPY_MIN_ROWS and _has_half_arithmetic():
        return heads.contiguous()
    return heads


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)

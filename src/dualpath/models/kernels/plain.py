"""Attention written out in float32 with plain tensor operations: right on every device, fast on none.

The fallback where no kernel applies, and the reference that the others are tested against. What it needs beside its
arguments is bounded, however long and unequal the contexts are: a few times ``contract.SCRATCH_BYTES``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dualpath.models.kernels.contract import SCRATCH_BYTES, HeadShape, PagedBatch, Split
from dualpath.models.kernels.merge import Attended, merge_by_owner

QUERY_CHUNK = 256  # at most
PIECE_TOKENS = 1024  # of a context, looked at together


def query_chunk(heads: int, keys: int) -> int:
    """How many queries' float32 scores, of all heads, fit the scratch."""
    return max(1, min(QUERY_CHUNK, SCRATCH_BYTES // (4 * heads * max(1, keys))))


class PlainKernels:
    """See ``kernels.Kernels``."""

    def prepare(self, shapes: Sequence[HeadShape]) -> dict[str, str]:
        return {str(shape): "plain" for shape in shapes}

    def lacks_wide_heads(self, dtype: torch.dtype) -> bool:
        return False

    def attend_all(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Attended:
        return self._chunked(q, k, v, 0, None, scale, causal=False)

    def attend_causal(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_cached: int, window: int | None, scale: float
    ) -> Attended:
        return self._chunked(q, k, v, num_cached, window, scale, causal=True)

    def attend_visible(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor, scale: float
    ) -> Attended:
        kv_heads, queries = k.shape[2], q.shape[2]
        grouped = q.float().unflatten(1, (kv_heads, -1)).flatten(2, 3)  # [B, Hkv, G * N, D]
        scores = torch.matmul(grouped, k.float().permute(0, 2, 3, 1)) * scale  # [B, Hkv, G * N, T]
        scores = scores.unflatten(2, (-1, queries)).masked_fill_(~visible[:, None, None], -torch.inf)
        lse = torch.logsumexp(scores, dim=-1)  # [B, Hkv, G, N]
        weights = (scores - lse.unsqueeze(-1)).exp_().flatten(2, 3)
        out = torch.matmul(weights, v.float().transpose(1, 2)).unflatten(2, (-1, queries))
        return out.flatten(1, 2).transpose(1, 2).to(q.dtype), lse.flatten(1, 2).transpose(1, 2)

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
        pieces = _pieces(batch, window)
        row_bytes = pages.shape[-1] * (pages.element_size() + 8) + q.shape[1] * 12  # of a copy, K and V, scores
        step = max(1, SCRATCH_BYTES // (pieces.num_blocks * batch.block_tokens * row_bytes))
        parts = []
        for start in range(0, len(pieces.owners), step):
            part = slice(start, start + step)
            rows, visible = pieces.gather(pages, batch, part)
            k, v = split(rows)
            queries = q.index_select(0, pieces.owners[part]).float().unsqueeze(2)
            out, lse = self.attend_visible(queries, k, v, visible[:, None], scale)
            parts.append((out[:, 0], lse[:, 0]))
        out, lse = (torch.cat(each) for each in zip(*parts, strict=True))
        if len(pieces.owners) > batch.size:
            out, lse = merge_by_owner(out, lse, pieces.owners, batch.size)
        return out.to(q.dtype), lse

    def _chunked(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        num_cached: int,
        window: int | None,
        scale: float,
        *,
        causal: bool,
    ) -> Attended:
        parts = []
        key_position, chunk = torch.arange(k.shape[0], device=q.device), query_chunk(q.shape[0], k.shape[0])
        for start in range(0, q.shape[1], chunk):
            part = q[:, start : start + chunk]
            query_position = num_cached + start + torch.arange(part.shape[1], device=q.device)[:, None]
            visible = key_position <= query_position if causal else torch.ones_like(key_position <= query_position)
            if window is not None:
                visible &= key_position > query_position - window
            parts.append(self.attend_visible(part[None], k[None], v[None], visible[None], scale))
        return torch.cat([out[0] for out, _ in parts]), torch.cat([lse[0] for _, lse in parts])


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Every context in pieces of ``num_blocks`` blocks, in order of requests: so padding is less than a piece each."""

    owners: torch.Tensor  # int64 [pieces]: the request
    columns: torch.Tensor  # int64 [pieces]: its first block, as a column of the block table
    num_blocks: int
    window: int | None

    def gather(self, pages: torch.Tensor, batch: PagedBatch, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows ``[pieces, tokens, E]``, copied; visible ``[pieces, tokens]``). Rows that nobody sees are zeros."""
        owners, tokens = self.owners[part], batch.block_tokens
        columns = self.columns[part, None] + torch.arange(self.num_blocks, device=pages.device)
        table = batch.block_table
        blocks = table[owners[:, None], columns.clamp(max=table.shape[1] - 1)].long()
        rows = pages[blocks].flatten(1, 2)
        position = self.columns[part, None] * tokens + torch.arange(rows.shape[1], device=pages.device)
        length = batch.lengths[owners, None]
        visible = position < length
        if self.window is not None:
            visible &= position >= length - self.window
        return rows.masked_fill_(~visible[:, :, None], 0), visible  # stale rows may be NaN, and 0 * NaN is NaN


def _pieces(batch: PagedBatch, window: int | None) -> _Pieces:
    """Once per step and window."""
    found: _Pieces | None = batch.memo.get(("pieces", window))
    if found is None:
        tokens = batch.block_tokens
        starts = [0 if window is None else max(0, length - window) // tokens for length in batch.length_list]
        ends = [-(-length // tokens) for length in batch.length_list]
        longest = max(end - start for start, end in zip(starts, ends, strict=True))
        num_blocks = max(1, min(longest, PIECE_TOKENS // tokens))
        places = [
            (owner, column)
            for owner, (start, end) in enumerate(zip(starts, ends, strict=True))
            for column in range(start, end, num_blocks)
        ]
        owners, columns = torch.tensor(places, device=batch.lengths.device).unbind(1)
        found = batch.memo[("pieces", window)] = _Pieces(owners, columns, num_blocks, window)
    return found

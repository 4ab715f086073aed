"""Attention written out in float32 with plain tensor operations: right on every device, fast on none.

The fallback where no kernel applies, and the reference that the others are tested against.
"""

from __future__ import annotations

import torch

from dualpath.models.kernels import PagedBatch, Split
from dualpath.models.merge import Attended

QUERY_CHUNK = 256  # bounds the score matrix to [Hq, 256, T] float32


class PlainKernels:
    """See ``kernels.Kernels``."""

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
        self, q: torch.Tensor, pages: torch.Tensor, split: Split, batch: PagedBatch, window: int | None, scale: float
    ) -> Attended:
        rows = pages[batch.block_table.long()].flatten(1, 2)  # [B, max_blocks * block_tokens, E], copied
        position = torch.arange(rows.shape[1], device=rows.device)
        visible = position < batch.lengths[:, None]
        if window is not None:
            visible &= position >= batch.lengths[:, None] - window
        rows = rows.masked_fill(~visible[:, :, None], 0)  # stale rows may be NaN, and 0 * NaN is NaN
        k, v = split(rows)
        out, lse = self.attend_visible(q.unsqueeze(2), k, v, visible[:, None], scale)
        return out[:, 0], lse[:, 0]

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
        key_position = torch.arange(k.shape[0], device=q.device)
        for start in range(0, q.shape[1], QUERY_CHUNK):
            part = q[:, start : start + QUERY_CHUNK]
            query_position = num_cached + start + torch.arange(part.shape[1], device=q.device)[:, None]
            visible = key_position <= query_position if causal else torch.ones_like(key_position <= query_position)
            if window is not None:
                visible &= key_position > query_position - window
            parts.append(self.attend_visible(part[None], k[None], v[None], visible[None], scale))
        return torch.cat([out[0] for out, _ in parts]), torch.cat([lse[0] for _, lse in parts])

"""DeepSeek's latent attention over cached latents: absorbed for few queries, expanded for many.

The cache holds one latent and one rotary key per token (DeepSeek-V2, section 2.1). *Absorbed*, each query head is
mapped into latent space and all heads attend to the same rows: no work per cached token besides attention. *Expanded*,
keys and values of every head are computed from the latents, as transformers does: more work per cached token, less
per query-key pair, so it pays once enough queries share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dualpath.models.attention import PagedLayer, Scores
from dualpath.models.kernels.contract import HeadShape, Kernels
from dualpath.models.kernels.merge import Attended, merge_two
from dualpath.models.kernels.plain import query_chunk
from dualpath.models.layout import MlaLayout

EXPAND_ROWS = 2048  # history rows expanded at a time: bounds memory to [2048, Hq, Dk + Dv]


class MlaAttention:
    """Dense and sparse (DeepSeek-V3.2) latent attention; see ``attention.CachedAttention``."""

    def __init__(self, layout: MlaLayout, kernels: Kernels) -> None:
        self._layout = layout
        self._kernels = kernels

    def shapes(self, config: Any, heads: int) -> list[HeadShape]:
        """Expanded prefill, absorbed prefill, absorbed decode."""
        dtype, cached = self._layout.dtype, self._layout.latent_dim + self._layout.rope_dim
        expanded = max(config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim)
        return [
            HeadShape(False, dtype, heads, heads, expanded, expanded),
            HeadShape(False, dtype, heads, 1, cached, cached),
            HeadShape(True, dtype, heads, 1, cached, self._layout.latent_dim),
        ]

    def prefill(
        self, module: nn.Module, q: torch.Tensor, rows: torch.Tensor, num_cached: int, scores: Scores
    ) -> Attended:
        up = _UpProjection.of(module)
        if scores.selected is not None and scores.selected.shape[-1] < rows.shape[0]:
            return self._prefill_sparse(up, q, rows, num_cached, scores)
        if self._kernels.lacks_wide_heads(q.dtype) or q.shape[1] >= up.expand_from_queries(self._layout):
            return self._prefill_expanded(up, q, rows, num_cached, scores.scale)
        k, v = self._layout.split(rows)
        out, lse = self._kernels.attend_causal(up.absorb(q), k, v, num_cached, None, scores.scale)
        return up.values(out), lse

    def decode(self, module: nn.Module, q: torch.Tensor, layer: PagedLayer, scores: Scores) -> Attended:
        up = _UpProjection.of(module)
        absorbed = up.absorb(q.transpose(0, 1)).transpose(0, 1)  # [B, Hq, latent + rope]
        if scores.selected is not None and scores.selected.shape[-1] < layer.batch.max_length:
            out, lse = self._decode_sparse(absorbed, layer, scores.selected[:, 0].long(), scores.scale)
        else:
            pages, value_dim = layer.pages, self._layout.latent_dim
            out, lse = self._kernels.attend_paged(
                absorbed, pages, self._layout.split, layer.batch, None, scores.scale, value_dim
            )
        return up.values(out), lse

    def _prefill_sparse(
        self, up: _UpProjection, q: torch.Tensor, rows: torch.Tensor, num_cached: int, scores: Scores
    ) -> Attended:
        """A few queries at a time: the scores of all would be gigabytes."""
        assert scores.selected is not None
        k, v = self._layout.split(rows)
        position = torch.arange(rows.shape[0], device=q.device)
        outs, lses, chunk = [], [], query_chunk(q.shape[0], rows.shape[0])
        for start in range(0, q.shape[1], chunk):
            selected = scores.selected[:, start : start + chunk].long()
            visible = torch.zeros((*selected.shape[:2], rows.shape[0]), dtype=torch.bool, device=q.device)
            visible.scatter_(-1, selected, True)
            # An early query has fewer visible keys than the indexer selects: the rest of those are in its future.
            visible &= position <= position[num_cached + start :][: selected.shape[1], None]
            absorbed = up.absorb(q[:, start : start + chunk])
            out, lse = self._kernels.attend_visible(absorbed[None], k[None], v[None], visible, scores.scale)
            outs.append(up.values(out[0]))
            lses.append(lse[0])
        return torch.cat(outs), torch.cat(lses)

    def _prefill_expanded(
        self, up: _UpProjection, q: torch.Tensor, rows: torch.Tensor, num_cached: int, scale: float
    ) -> Attended:
        q = F.pad(q, (0, up.padded_dim - q.shape[-1]))
        k, v = up.expand(rows[num_cached:], self._layout)
        attended = self._kernels.attend_causal(q, k, v, 0, None, scale)
        for start in range(0, num_cached, EXPAND_ROWS):
            k, v = up.expand(rows[start : min(start + EXPAND_ROWS, num_cached)], self._layout)
            attended = merge_two(attended, self._kernels.attend_all(q, k, v, scale))
        out, lse = attended
        return out[..., : up.value_dim], lse

    def _decode_sparse(self, q: torch.Tensor, layer: PagedLayer, selected: torch.Tensor, scale: float) -> Attended:
        """Gather the selected rows only: at most ``index_topk`` per request, however long the context."""
        batch = layer.batch
        visible = selected < batch.lengths[:, None]  # [B, k]
        position = torch.where(visible, selected, 0)  # any row that exists and is finite
        block = batch.block_table.long().gather(1, position // batch.block_tokens)
        row = (block * layer.num_layers + layer.layer) * batch.block_tokens + position % batch.block_tokens
        rows = layer.pool_rows.index_select(0, row.flatten()).unflatten(0, row.shape)  # [B, k, row_elems]
        k, v = self._layout.split(rows)
        out, lse = self._kernels.attend_visible(q.unsqueeze(2), k, v, visible[:, None], scale)
        return out[:, 0], lse[:, 0]


@dataclass(frozen=True, slots=True)
class _UpProjection:
    """The two halves of ``kv_b_proj``: latent to keys, latent to values."""

    weight: torch.Tensor  # [Hq, nope_dim + value_dim, latent_dim]
    nope_dim: int
    rope_dim: int
    value_dim: int

    @classmethod
    def of(cls, module: Any) -> _UpProjection:
        weight = module.kv_b_proj.weight
        if hasattr(weight, "to_local"):  # tensor parallelism: this rank's heads
            weight = weight.to_local()
        weight = weight.unflatten(0, (-1, module.qk_nope_head_dim + module.v_head_dim))
        return cls(weight, module.qk_nope_head_dim, module.qk_rope_head_dim, module.v_head_dim)

    @property
    def padded_dim(self) -> int:
        """Kernels want K and V heads of one size."""
        return max(self.nope_dim + self.rope_dim, self.value_dim)

    def expand_from_queries(self, layout: MlaLayout) -> float:
        """Number of new tokens from which expanding costs fewer multiplications per cached token than absorbing."""
        per_pair_saved = 2 * (layout.latent_dim + layout.rope_dim) - 2 * self.padded_dim
        if per_pair_saved <= 0:
            return float("inf")
        return layout.latent_dim * (self.nope_dim + self.value_dim) / per_pair_saved

    def absorb(self, q: torch.Tensor) -> torch.Tensor:
        """q ``[Hq, N, nope + rope]`` -> ``[Hq, N, latent + rope]``."""
        latent = torch.bmm(q[..., : self.nope_dim], self.weight[:, : self.nope_dim])
        return torch.cat((latent, q[..., self.nope_dim :]), dim=-1)

    def values(self, out: torch.Tensor) -> torch.Tensor:
        """Attention's mean latents ``[N, Hq, latent + rope]`` -> ``[N, Hq, value_dim]``."""
        latent = out[..., : self.weight.shape[-1]].transpose(0, 1)
        return torch.bmm(latent, self.weight[:, self.nope_dim :].transpose(1, 2)).transpose(0, 1)

    def expand(self, rows: torch.Tensor, layout: MlaLayout) -> tuple[torch.Tensor, torch.Tensor]:
        """rows ``[T, row_elems]`` -> k, v ``[T, Hq, padded_dim]``."""
        heads = self.weight.shape[0]
        both = F.linear(rows[:, : layout.latent_dim], self.weight.flatten(0, 1)).unflatten(-1, (heads, -1))
        k = both.new_zeros((rows.shape[0], heads, self.padded_dim))
        k[..., : self.nope_dim] = both[..., : self.nope_dim]
        rope = rows[:, None, layout.latent_dim : layout.latent_dim + layout.rope_dim]
        k[..., self.nope_dim : self.nope_dim + self.rope_dim] = rope
        return k, F.pad(both[..., self.nope_dim :], (0, self.padded_dim - self.value_dim))

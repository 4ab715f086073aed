"""Grouped-query attention over cached rows, and the interface that latent attention (``mla``) shares with it.

"Module" is transformers' attention module of the layer: weights and sizes are read from it, nothing is changed in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from dualpath.models.kernels.contract import HeadShape, Kernels, PagedBatch
from dualpath.models.kernels.merge import Attended
from dualpath.models.layout import GqaLayout


@dataclass(frozen=True, slots=True)
class Scores:
    """How a layer scores keys, as its attention module says."""

    scale: float
    window: int | None  # tokens a query sees, itself included; None: all
    selected: torch.Tensor | None  # int [B, T, k]: positions that sparse attention selected, some perhaps invisible


@dataclass(frozen=True, slots=True)
class PagedLayer:
    """One layer of the pool during a decode step."""

    pages: torch.Tensor  # [num_blocks, block_tokens, row_elems], strided
    pool_rows: torch.Tensor  # [num_blocks * num_layers * block_tokens, row_elems]: every row of the pool
    layer: int
    num_layers: int
    batch: PagedBatch


class CachedAttention(Protocol):
    """A family's attention over rows in its layout. Outputs have the value head size Dv of the module."""

    def shapes(self, config: Any, heads: int) -> list[HeadShape]:
        """What kernels will be asked for, in a process with so many of the query heads of a model."""
        ...

    def prefill(
        self, module: nn.Module, q: torch.Tensor, rows: torch.Tensor, num_cached: int, scores: Scores
    ) -> Attended:
        """q ``[Hq, N, Dq]``, rows ``[num_cached + N, row_elems]`` -> out ``[N, Hq, Dv]``, lse ``[N, Hq]``."""
        ...

    def decode(self, module: nn.Module, q: torch.Tensor, layer: PagedLayer, scores: Scores) -> Attended:
        """q ``[B, Hq, Dq]`` -> out ``[B, Hq, Dv]``, lse ``[B, Hq]``."""
        ...


class GqaAttention:
    """Keys and values are in the rows: attention is the kernel's."""

    def __init__(self, layout: GqaLayout, kernels: Kernels) -> None:
        self._layout = layout
        self._kernels = kernels

    def shapes(self, config: Any, heads: int) -> list[HeadShape]:
        layout = self._layout
        sizes = layout.dtype, heads, layout.kv_heads, layout.head_dim, layout.head_dim
        return [HeadShape(False, *sizes), HeadShape(True, *sizes)]

    def prefill(
        self, module: nn.Module, q: torch.Tensor, rows: torch.Tensor, num_cached: int, scores: Scores
    ) -> Attended:
        k, v = self._layout.split(rows)
        return self._kernels.attend_causal(q, k, v, num_cached, scores.window, scores.scale)

    def decode(self, module: nn.Module, q: torch.Tensor, layer: PagedLayer, scores: Scores) -> Attended:
        return self._kernels.attend_paged(q, layer.pages, self._layout.split, layer.batch, scores.window, scores.scale)

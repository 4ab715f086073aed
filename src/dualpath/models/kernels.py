"""The attention kernels that models are written against, and the one place that picks an implementation for a device.

GQA and latent attention use the same four operations: latent attention absorbs its up-projections and then looks like
attention with one KV head. Outputs keep the query's dtype; lse is float32 and natural. ``Hq`` is a multiple of ``Hkv``;
query head h reads KV head ``h // (Hq // Hkv)``. K and V head sizes are equal (pad if they are not).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from dualpath.models.merge import Attended

Split = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # rows [..., E] -> K, V views [..., Hkv, D]


@dataclass(slots=True)
class PagedBatch:
    """Where the contexts of one decode step lie. ``memo`` is the kernels' own: what they derive once per step."""

    block_table: torch.Tensor  # int32 [B, max_blocks], padded with 0
    lengths: torch.Tensor  # int64 [B]: tokens in the pool, the new one included
    length_list: list[int]
    block_tokens: int
    memo: dict[Any, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.length_list)


class Kernels(Protocol):
    """Attention on one device. Pages may hold arbitrary bytes, NaN included, beyond a context's length."""

    def attend_all(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Attended:
        """Every query sees every key. q ``[Hq, N, D]``, k and v ``[T, Hkv, D]``
        -> out ``[N, Hq, D]``, lse ``[N, Hq]``."""
        ...

    def attend_causal(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_cached: int, window: int | None, scale: float
    ) -> Attended:
        """Query i sees keys ``0 .. num_cached + i``, of these the last ``window``. Shapes as above,
        T = num_cached + N."""
        ...

    def attend_visible(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor, scale: float
    ) -> Attended:
        """q ``[B, Hq, N, D]``, k and v ``[B, T, Hkv, D]``, visible bool ``[B, N, T]``, at least one key for each query
        -> out ``[B, N, Hq, D]``, lse ``[B, N, Hq]``."""
        ...

    def attend_paged(
        self, q: torch.Tensor, pages: torch.Tensor, split: Split, batch: PagedBatch, window: int | None, scale: float
    ) -> Attended:
        """One query per request. q ``[B, Hq, D]``, pages ``[num_blocks, block_tokens, E]`` (strided: one layer of the
        pool) -> out ``[B, Hq, D]``, lse ``[B, Hq]``."""
        ...


def select_kernels(device: torch.device) -> Kernels:
    """The fastest kernels known to be right on ``device``. CUDA code is imported only for CUDA devices."""
    if device.type == "cpu":
        from dualpath.models.kernels_cpu import CpuKernels

        return CpuKernels()
    if device.type == "cuda":
        from dualpath.models.kernels_cuda import cuda_kernels

        return cuda_kernels(device)
    from dualpath.models.kernels_plain import PlainKernels

    return PlainKernels()

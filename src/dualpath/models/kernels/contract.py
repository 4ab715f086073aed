"""The attention kernels that models are written against.

GQA and latent attention use the same four operations: latent attention absorbs its up-projections and then looks like
attention with one KV head. Outputs keep the query's dtype; lse is float32 and natural. ``Hq`` is a multiple of ``Hkv``;
query head h reads KV head ``h // (Hq // Hkv)``. K and V head sizes are equal (pad if they are not).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from dualpath.models.kernels.merge import Attended

SCRATCH_BYTES = 256 * 1024**2  # of scores, or of gathered rows, that plain kernels have at a time
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

    @property
    def max_length(self) -> int:
        """Of the longest context; computed once per step."""
        if "max_length" not in self.memo:
            self.memo["max_length"] = max(self.length_list)
        found: int = self.memo["max_length"]
        return found


@dataclass(frozen=True, slots=True)
class HeadShape:
    """What a model asks of its kernels: known when it is loaded, so that they can be tried then."""

    is_paged: bool  # decode; else prefill
    dtype: torch.dtype
    heads: int
    kv_heads: int
    dim: int
    value_dim: int

    def __str__(self) -> str:
        dims = f"{self.dim}" if self.dim == self.value_dim else f"{self.dim}/{self.value_dim}"
        name = str(self.dtype).removeprefix("torch.")
        return f"{'decode' if self.is_paged else 'prefill'} {self.heads}:{self.kv_heads} x {dims} {name}"


class Kernels(Protocol):
    """Attention on one device. Pages may hold arbitrary bytes, NaN included, beyond a context's length."""

    def prepare(self, shapes: Sequence[HeadShape]) -> dict[str, str]:
        """Choose a kernel for each of these shapes; what was chosen, by shape, in words."""
        ...

    def lacks_wide_heads(self, dtype: torch.dtype) -> bool:
        """Is prefill with heads above 256 done plainly, while smaller ones have a fast kernel?"""
        ...

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
        self,
        q: torch.Tensor,
        pages: torch.Tensor,
        split: Split,
        batch: PagedBatch,
        window: int | None,
        scale: float,
        value_dim: int | None = None,
    ) -> Attended:
        """One query per request. q ``[B, Hq, D]``, pages ``[num_blocks, block_tokens, E]`` (strided: one layer of the
        pool) -> out ``[B, Hq, D]``, lse ``[B, Hq]``. Of out only the first ``value_dim`` elements need to be there."""
        ...

"""Attention on CUDA devices: the one place that decides which kernel runs, by trying it.

PyTorch's ``varlen_attn`` (Flash Attention) reads strided keys, ragged batches and pages, but what it accepts depends on
the GPU and the build: FlashAttention 2 wants pages of a multiple of 256 tokens, version 3 does not. So each use
is tried once against the plain kernels on a small case of the same shape, NaN behind the context included. Whatever
fails or differs is done by a safer way: paged, else gathered pages and ``varlen_attn``, else plain operations.
Float32 and heads above 256 (absorbed latent attention) always take the plain way.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import torch

from dualpath.models.kernels import PagedBatch, Split
from dualpath.models.kernels_plain import PlainKernels
from dualpath.models.merge import Attended

MAX_HEAD_DIM = 256  # Flash Attention's limit
_TOLERANCE = 3e-2  # of unit-variance values, in bfloat16

log = logging.getLogger(__name__)


@lru_cache
def cuda_kernels(device: torch.device) -> CudaKernels:
    """One instance per device: what was tried once is remembered."""
    return CudaKernels(device)


class CudaKernels(PlainKernels):
    """See ``kernels.Kernels``. Everything inherited is the fallback."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tried: dict[tuple[Any, ...], bool] = {}

    def attend_all(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Attended:
        if self._flash_works(q, k):
            return self._flash(q, k, v, (-1, -1), scale)
        return super().attend_all(q, k, v, scale)

    def attend_causal(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_cached: int, window: int | None, scale: float
    ) -> Attended:
        if self._flash_works(q, k):
            return self._flash(q, k, v, _left_right(window), scale)
        return super().attend_causal(q, k, v, num_cached, window, scale)

    def attend_paged(
        self, q: torch.Tensor, pages: torch.Tensor, split: Split, batch: PagedBatch, window: int | None, scale: float
    ) -> Attended:
        if self._paged_works(True, q, pages, split, batch.block_tokens):
            return self._flash_paged(q, pages, split, batch, window, scale)
        if self._paged_works(False, q, pages, split, batch.block_tokens):
            return self._flash_gathered(q, pages, split, batch, window, scale)
        return super().attend_paged(q, pages, split, batch, window, scale)

    def _flash(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: tuple[int, int], scale: float
    ) -> Attended:
        """One sequence; Flash Attention aligns causality and windows with the last key."""
        queries, keys = q.shape[1], k.shape[0]
        cu_q, cu_k = self._ints([0, queries]), self._ints([0, keys])
        return _varlen(q.transpose(0, 1).contiguous(), k, v, cu_q, cu_k, queries, keys, scale, window)

    def _flash_paged(
        self, q: torch.Tensor, pages: torch.Tensor, split: Split, batch: PagedBatch, window: int | None, scale: float
    ) -> Attended:
        k, v = split(pages)
        paged = {"block_table": batch.block_table, "seqused_k": self._lengths(batch)}
        return _varlen(
            q, k, v, self._query_starts(batch), None, 1, max(batch.length_list), scale, _left_right(window), **paged
        )

    def _flash_gathered(
        self, q: torch.Tensor, pages: torch.Tensor, split: Split, batch: PagedBatch, window: int | None, scale: float
    ) -> Attended:
        k, v = split(pages.index_select(0, batch.block_table.flatten()).flatten(0, 1))
        per_request = batch.block_table.shape[1] * batch.block_tokens
        starts = self._query_starts(batch)
        used = {"seqused_k": self._lengths(batch)}
        return _varlen(q, k, v, starts, starts * per_request, 1, per_request, scale, _left_right(window), **used)

    def _flash_works(self, q: torch.Tensor, k: torch.Tensor) -> bool:
        if not _may_flash(q):
            return False
        key = ("flash", q.dtype, q.shape[0], k.shape[1], q.shape[2])
        if key not in self._tried:
            self._tried[key] = self._try_flash(q.dtype, q.shape[0], k.shape[1], q.shape[2])
        return self._tried[key]

    def _paged_works(self, paged: bool, q: torch.Tensor, pages: torch.Tensor, split: Split, block_tokens: int) -> bool:
        if not _may_flash(q):
            return False
        layers = max(1, pages.stride(0) // (block_tokens * pages.shape[-1]))  # of the pool the pages are cut from
        key = ("paged" if paged else "gathered", q.dtype, *q.shape[1:], pages.shape[-1], block_tokens, layers)
        if key not in self._tried:
            self._tried[key] = self._try_paged(paged, q, pages.shape[-1], split, block_tokens, layers)
        return self._tried[key]

    def _try_flash(self, dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> bool:
        q = self._random(heads, 5, dim, dtype=dtype)
        rows = self._random(77, 2 * kv_heads, dim, dtype=dtype)
        k, v = rows[:, :kv_heads], rows[:, kv_heads:]
        return _same(
            lambda: [self._flash(q, k, v, window, dim**-0.5) for window in ((-1, 0), (8, 0), (-1, -1))],
            lambda: [
                PlainKernels.attend_causal(self, q, k, v, 72, None, dim**-0.5),
                PlainKernels.attend_causal(self, q, k, v, 72, 9, dim**-0.5),
                PlainKernels.attend_all(self, q, k, v, dim**-0.5),
            ],
        )

    def _try_paged(
        self, paged: bool, like: torch.Tensor, elems: int, split: Split, block_tokens: int, layers: int
    ) -> bool:
        lengths = [block_tokens + 3, 1, 2 * block_tokens]
        pool = self._random(6, layers, block_tokens, elems, dtype=like.dtype)
        pool[4, :, 3:], pool[2, :, 1:] = torch.nan, torch.nan  # what no request has written yet
        table = torch.tensor([[1, 4], [2, 0], [5, 3]], dtype=torch.int32, device=self._device)
        batch = PagedBatch(table, torch.tensor(lengths, device=self._device), lengths, block_tokens)
        q = self._random(3, *like.shape[1:], dtype=like.dtype)
        run = self._flash_paged if paged else self._flash_gathered
        pages, scale = pool[:, layers - 1], like.shape[-1] ** -0.5
        return _same(
            lambda: [run(q, pages, split, batch, window, scale) for window in (None, block_tokens // 2)],
            lambda: [
                PlainKernels.attend_paged(self, q, pages, split, batch, window, scale)
                for window in (None, block_tokens // 2)
            ],
        )

    def _random(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        generator = torch.Generator(device=self._device).manual_seed(0)
        return torch.randn(shape, generator=generator, device=self._device).to(dtype)

    def _ints(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self._device)

    def _lengths(self, batch: PagedBatch) -> torch.Tensor:
        if "lengths" not in batch.memo:
            batch.memo["lengths"] = batch.lengths.to(torch.int32)
        return batch.memo["lengths"]

    def _query_starts(self, batch: PagedBatch) -> torch.Tensor:
        if "starts" not in batch.memo:
            batch.memo["starts"] = torch.arange(batch.size + 1, dtype=torch.int32, device=self._device)
        return batch.memo["starts"]


def _may_flash(q: torch.Tensor) -> bool:
    return q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] <= MAX_HEAD_DIM


def _left_right(window: int | None) -> tuple[int, int]:
    """Keys before and after the query's own that it sees."""
    return (-1, 0) if window is None else (window - 1, 0)


def _varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    scale: float,
    window: tuple[int, int],
    **paged: torch.Tensor,
) -> Attended:
    """q ``[T, Hq, D]`` -> out ``[T, Hq, D]``, lse ``[T, Hq]``. One split: results do not depend on the batch."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    out, lse = varlen_attn(
        q,
        k,
        v,
        cu_q,
        cu_k,
        max_q,
        max_k,
        return_aux=AuxRequest(lse=True),
        scale=scale,
        window_size=window,
        enable_gqa=q.shape[1] != (k.shape[2] if "block_table" in paged else k.shape[1]),
        num_splits=1,
        **paged,
    )
    return out, lse.transpose(0, 1)  # ATen's _flash_attention_forward gives [Hq, T]


def _same(attempt: Any, reference: Any) -> bool:
    """Whether a kernel runs and agrees. A refusal is an exception from argument checks: the device stays healthy."""
    try:
        results = attempt()
    except (RuntimeError, ValueError, ImportError, TypeError) as error:
        log.info("varlen_attn is not used: %s", error)
        return False
    for (out, lse), (right_out, right_lse) in zip(results, reference(), strict=True):
        if out.shape != right_out.shape or lse.shape != right_lse.shape:
            return False
        if not torch.allclose(out.float(), right_out.float(), atol=_TOLERANCE, rtol=_TOLERANCE):
            return False
        if not torch.allclose(lse, right_lse, atol=_TOLERANCE, rtol=_TOLERANCE):
            return False
    return True

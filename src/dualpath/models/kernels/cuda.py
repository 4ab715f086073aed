"""Attention on CUDA devices: the one place that decides which kernel runs, by trying it.

Prefill takes Flash Attention, decode our own paged kernel (``paged_decode``); each shape is tried once, when a model is
loaded, against the plain kernels on a small case, NaN behind the context included. Whatever is refused or differs is
done plainly instead, and a warning says so: plain kernels are right and slow. Being out of memory is no refusal.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from dualpath.models.kernels import flash
from dualpath.models.kernels.contract import HeadShape, PagedBatch, Split
from dualpath.models.kernels.merge import Attended
from dualpath.models.kernels.plain import PlainKernels

FLASH, TRITON, PLAIN = "flash", "triton", "plain"
_TOLERANCE = {torch.float32: 1e-3}  # of unit-variance values
_HALF_TOLERANCE = 3e-2
_TRIED_PAGES = (64, 20)  # tokens

log = logging.getLogger(__name__)


@lru_cache
def cuda_kernels(device: torch.device) -> CudaKernels:
    """One instance per device: what was tried once is remembered."""
    return CudaKernels(device)


class CudaKernels(PlainKernels):
    """See ``kernels.Kernels``. Everything inherited is the fallback. ``calls`` counts what ran, by path."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._chosen: dict[tuple[Any, ...], str] = {}
        self._ends: dict[int, torch.Tensor] = {}
        self.calls: Counter[str] = Counter()

    def prepare(self, shapes: Sequence[HeadShape]) -> dict[str, str]:
        """Try what a model needs, before memory is handed out: path by operation and shape, in words."""
        found = {}
        for shape in shapes:
            if shape.is_paged:
                path = self._paged_path(shape.dtype, shape.heads, shape.kv_heads, shape.dim, shape.value_dim)
            else:
                path = self._prefill_path(shape.dtype, shape.heads, shape.kv_heads, shape.dim)
            found[str(shape)] = path
        return found

    def lacks_wide_heads(self, dtype: torch.dtype) -> bool:
        return dtype in (torch.bfloat16, torch.float16)

    def attend_all(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Attended:
        if self._takes_flash(q, k):
            return self._flash(q, k, v, flash.ALL, scale)
        return super().attend_all(q, k, v, scale)

    def attend_causal(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_cached: int, window: int | None, scale: float
    ) -> Attended:
        if self._takes_flash(q, k):
            # One query at the end sees all keys: said so, version 2 packs the heads of a group.
            whole = flash.ALL if q.shape[1] == 1 else flash.CAUSAL
            return self._flash(q, k, v, whole if window is None else (window - 1, 0), scale)
        return super().attend_causal(q, k, v, num_cached, window, scale)

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
        k, v = split(pages)
        dims = q.shape[-1], value_dim or q.shape[-1]
        path = self._paged_path(q.dtype, q.shape[1], k.shape[2], *dims)
        self.calls[f"decode {path}"] += 1
        if path == TRITON:
            return _triton()(q, k, v, batch, window, scale, dims[1])
        return super().attend_paged(q, pages, split, batch, window, scale, value_dim)

    def _flash(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: tuple[int, int], scale: float
    ) -> Attended:
        return flash.attend(q, k, v, (self._end(q.shape[1]), self._end(k.shape[0])), window, scale)

    def _end(self, num_rows: int) -> torch.Tensor:
        """int32 ``[0, num_rows]`` on the device; copied once, however many layers want it."""
        if num_rows not in self._ends:
            if len(self._ends) >= 256:
                self._ends.clear()
            self._ends[num_rows] = torch.tensor([0, num_rows], dtype=torch.int32, device=self._device)
        return self._ends[num_rows]

    def _takes_flash(self, q: torch.Tensor, k: torch.Tensor) -> bool:
        path = self._prefill_path(q.dtype, q.shape[0], k.shape[1], q.shape[2])
        self.calls[f"prefill {path}"] += 1
        return path == FLASH

    # -- trials ----------------------------------------------------------------------------------------------------

    def _prefill_path(self, dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> str:
        key = ("prefill", dtype, heads, kv_heads, dim)
        if key not in self._chosen:
            self._chosen[key] = self._try_flash(dtype, heads, kv_heads, dim)
        return self._chosen[key]

    def _paged_path(self, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, value_dim: int) -> str:
        key = ("decode", dtype, heads, kv_heads, dim, value_dim)
        if key not in self._chosen:
            self._chosen[key] = self._try_paged(dtype, heads, kv_heads, dim, value_dim)
        return self._chosen[key]

    def _try_flash(self, dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> str:
        what = f"prefill of {heads} heads over {kv_heads} of {dim} in {_name(dtype)}"
        q = self._random(heads, 5, dim, dtype=dtype)
        rows = self._random(77, 2 * kv_heads, dim, dtype=dtype)
        k, v = rows[:, :kv_heads], rows[:, kv_heads:]
        if not flash.may_take(q, k):
            log.info("%s is plain: no Flash Attention for it", what)
            return PLAIN
        scale = dim**-0.5
        trials = [
            _Trial(lambda w=window: self._flash(q, k, v, w, scale), right)  # type: ignore[misc]
            for window, right in (
                (flash.CAUSAL, lambda: PlainKernels.attend_causal(self, q, k, v, 72, None, scale)),
                ((8, 0), lambda: PlainKernels.attend_causal(self, q, k, v, 72, 9, scale)),
                (flash.ALL, lambda: PlainKernels.attend_all(self, q, k, v, scale)),
            )
        ]
        return FLASH if _works(what, "Flash Attention", trials, dtype) else PLAIN

    def _try_paged(self, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, value_dim: int) -> str:
        what = f"decode of {heads} heads over {kv_heads} of {dim} in {_name(dtype)}"
        is_shared = value_dim < dim

        def split(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = rows.unflatten(-1, (-1, dim))
            return (found, found) if is_shared else (found[..., :kv_heads, :], found[..., kv_heads:, :])

        elems = dim * kv_heads * (1 if is_shared else 2)
        q, scale, trials = self._random(3, heads, dim, dtype=dtype), dim**-0.5, []
        for block_tokens in _TRIED_PAGES:
            pages, batch = self._pages(elems, block_tokens, dtype)
            for window in (None, block_tokens // 2):

                def ours(pages=pages, batch=batch, window=window):  # type: ignore[no-untyped-def]
                    return _triton()(q, *split(pages), batch, window, scale, value_dim)

                def right(pages=pages, batch=batch, window=window):  # type: ignore[no-untyped-def]
                    out, lse = PlainKernels.attend_paged(self, q, pages, split, batch, window, scale)
                    return out[..., :value_dim], lse

                trials.append(_Trial(ours, right))
        return TRITON if _works(what, "the paged kernel", trials, dtype) else PLAIN

    def _pages(self, elems: int, block_tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, PagedBatch]:
        """One of two layers; a long context, one token, a full block."""
        long = 300 // block_tokens
        lengths = [long * block_tokens + 3, 1, block_tokens]
        pool = self._random(long + 5, 2, block_tokens, elems, dtype=dtype)
        pool[long, :, 3:], pool[long + 1, :, 1:] = torch.nan, torch.nan  # what no request has written yet
        table = [list(range(long + 1)), [long + 1] + [0] * long, [long + 3] + [0] * long]
        on_device = torch.tensor(table, dtype=torch.int32, device=self._device)
        return pool[:, 1], PagedBatch(on_device, torch.tensor(lengths, device=self._device), lengths, block_tokens)

    def _random(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        generator = torch.Generator(device=self._device).manual_seed(0)
        return torch.randn(shape, generator=generator, device=self._device).to(dtype)


def _triton() -> Callable[..., Attended]:
    """Imported where it is used: ``triton`` is not everywhere. Raises ImportError."""
    from dualpath.models.kernels.paged_decode import attend_paged

    return attend_paged


@dataclass(frozen=True, slots=True)
class _Trial:
    ours: Callable[[], Attended]
    right: Callable[[], Attended]


def _works(what: str, kernel: str, trials: Sequence[_Trial], dtype: torch.dtype) -> bool:
    """Whether a kernel runs and agrees. A refusal is an exception before anything runs: the device stays healthy."""
    tolerance = _TOLERANCE.get(dtype, _HALF_TOLERANCE)
    for trial in trials:
        try:
            out, lse = trial.ours()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Triton's and ATen's share no base class
            log.warning("%s is plain, and slow: %s is refused: %s", what, kernel, " ".join(str(error).split())[:300])
            return False
        right_out, right_lse = trial.right()
        is_same = out.shape == right_out.shape and lse.shape == right_lse.shape
        for ours, right in ((out, right_out), (lse, right_lse)) if is_same else ():
            is_same = is_same and torch.allclose(ours.float(), right.float(), atol=tolerance, rtol=tolerance)
        if not is_same:
            log.warning("%s is plain, and slow: %s gives wrong results here", what, kernel)
            return False
    return True


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

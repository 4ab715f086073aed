"""The cache-compute ratio: gigabytes of KV to load per PFLOP to compute (paper, arXiv 2602.21548, Table 1).

The higher it is, the more a turn of an agent waits for storage rather than for the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dualpath.sim.catalogue.convention import Convention, all_conventions
from dualpath.sim.catalogue.find import FoundModel
from dualpath.sim.catalogue.flops import PrefillFlops, prefill_flops
from dualpath.sim.catalogue.kv import kv_bytes, kv_bytes_per_token
from dualpath.sim.catalogue.shape import ModelShape

K = 1024  # "16K" of context
TABLE_1_APPEND = 429  # new tokens: the mean append of the paper's 64K trace
TABLE_1_CONTEXTS = (16 * K, 64 * K)
# GB per PFLOP at the two contexts, as printed: targets to compare with, not inputs of anything.
TABLE_1_RATIOS = {
    "Qwen2.5-32B": (117.0, 267.0),
    "GPT-OSS-120B": (47.0, 95.0),
    "Qwen3-235B-A22B": (39.0, 60.0),
    "DeepSeek-V3.2": (13.0, 36.0),
    "DeepSeek-V3": (4.8, 5.8),
}


@dataclass(frozen=True, slots=True)
class RatioPoint:
    """One model at one context: ``num_cached`` tokens hit."""

    num_cached: int
    kv_bytes: int
    flops: PrefillFlops
    lowest: float  # GB per PFLOP, over all conventions
    highest: float
    paper: float | None  # where Table 1 has the point

    @property
    def gb_per_pflop(self) -> float:
        return _gb_per_pflop(self.kv_bytes, self.flops.total)

    @property
    def rel_error(self) -> float | None:
        return None if self.paper is None else self.gb_per_pflop / self.paper - 1


@dataclass(frozen=True, slots=True)
class RatioRow:
    model: ModelShape
    kv_dtype: str
    kv_bytes_per_token: int
    points: tuple[RatioPoint, ...]


def ratio_row(
    found: FoundModel, kv_dtype: str | None, contexts: Sequence[int], num_new: int, convention: Convention
) -> RatioRow:
    """Raises ConfigError for an unknown dtype. ``kv_dtype`` None: the model's own."""
    dtype = kv_dtype or found.kv_dtype
    is_table_1 = num_new == TABLE_1_APPEND and dtype == found.kv_dtype
    printed = TABLE_1_RATIOS.get(found.shape.name) if is_table_1 else None
    targets = dict(zip(TABLE_1_CONTEXTS, printed, strict=True)) if printed else {}
    return RatioRow(
        model=found.shape,
        kv_dtype=dtype,
        kv_bytes_per_token=kv_bytes_per_token(found.shape, dtype, convention),
        points=tuple(_point(found.shape, dtype, c, num_new, convention, targets.get(c)) for c in contexts),
    )


def cache_compute_ratio(
    model: ModelShape, kv_dtype: str, num_cached: int, num_new: int, convention: Convention
) -> float:
    """GB per PFLOP; GB and PFLOP are powers of ten."""
    loaded = kv_bytes(model, kv_dtype, num_cached, convention)
    return _gb_per_pflop(loaded, prefill_flops(model, num_cached, num_new, convention).total)


def _point(
    model: ModelShape, kv_dtype: str, num_cached: int, num_new: int, convention: Convention, paper: float | None
) -> RatioPoint:
    ratios = [cache_compute_ratio(model, kv_dtype, num_cached, num_new, other) for other in all_conventions()]
    return RatioPoint(
        num_cached=num_cached,
        kv_bytes=kv_bytes(model, kv_dtype, num_cached, convention),
        flops=prefill_flops(model, num_cached, num_new, convention),
        lowest=min(ratios),
        highest=max(ratios),
        paper=paper,
    )


def _gb_per_pflop(num_bytes: float, flops: float) -> float:
    return num_bytes / 1e9 / (flops / 1e15)

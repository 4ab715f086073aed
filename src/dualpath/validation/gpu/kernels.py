"""Step 2: which kernel runs for each shape, how far off it is from plain attention, how fast against memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dualpath.models.kernels.contract import HeadShape, Kernels, PagedBatch
from dualpath.models.kernels.plain import PlainKernels
from dualpath.models.kernels.select import select_kernels
from dualpath.models.layout import GqaLayout, KvLayout, MlaLayout
from dualpath.validation.gpu.result import Findings, SkipStepError
from dualpath.validation.gpu.setting import Setting

BATCH = 8  # so that contexts are split
TOLERANCE = 3e-2
_BIG_POOL_BYTES = 5 << 30


@dataclass(frozen=True, slots=True)
class _Shape:
    name: str
    layout: KvLayout
    heads: int
    dim: int
    value_dim: int
    block_tokens: int
    window: int | None = None


def _shapes(dtype: torch.dtype) -> list[_Shape]:
    gqa, latent = GqaLayout(dtype, 8, 128), MlaLayout(dtype, 512, 64)
    return [
        _Shape("GQA 32:8 x 128, pages of 64", gqa, 32, 128, 128, 64),
        _Shape("GQA 32:8 x 128, pages of 256", gqa, 32, 128, 128, 256),
        _Shape("GQA 64:8 x 64, window 128", GqaLayout(dtype, 8, 64), 64, 64, 64, 64, 128),
        _Shape("GQA 128:1 x 128", GqaLayout(dtype, 1, 128), 128, 128, 128, 64),
        _Shape("MLA 128:1 x 576/512", latent, 128, 576, 512, 64),
    ]


def run(setting: Setting, found: Findings) -> None:
    kernels, dtype = select_kernels(setting.device), getattr(torch, setting.scale.dtype)
    title = f"Decode, {BATCH} contexts, the longest {setting.scale.kernel_tokens} tokens, {setting.scale.dtype}"
    table = found.table(title, "shape", "path", "largest error", "ms", "ms plain", "of the memory's rate")
    fast = True
    for shape in _shapes(dtype):
        path, error, own_s, plain_s, num_bytes = _decode(setting, kernels, shape)
        share = num_bytes / own_s / setting.rates.memory if setting.rates.memory else 0.0
        table.rows.append([shape.name, path, f"{error:.1e}", _ms(own_s), _ms(plain_s), f"{share:.0%}"])
        found.verdict(f"{shape.name} is right", f"{error:.1e}", error <= TOLERANCE)
        fast = fast and path != "plain"
    _prefill(setting, kernels, found)
    found.verdict("no shape of decode is left to plain kernels", fast, fast)
    if setting.device.type == "cuda":
        _big_pool(setting, kernels, found)


def _decode(setting: Setting, kernels: Kernels, shape: _Shape) -> tuple[str, float, float, float, int]:
    dtype = shape.layout.dtype
    asked = HeadShape(True, dtype, shape.heads, _kv_heads(shape.layout), shape.dim, shape.value_dim)
    (path,) = kernels.prepare([asked]).values()
    longest = setting.scale.kernel_tokens
    lengths = [longest] * (BATCH - 1) + [longest // 100 + 1]
    pages, batch = _pages(setting.device, shape, lengths)
    q = torch.randn((BATCH, shape.heads, shape.dim), device=setting.device).to(dtype)
    rest = (pages, shape.layout.split, batch, shape.window, shape.dim**-0.5, shape.value_dim)
    out, lse = kernels.attend_paged(q, *rest)
    right_out, right_lse = PlainKernels().attend_paged(q, *rest)
    width = shape.value_dim
    errors = [(out[..., :width].float() - right_out[..., :width].float()).abs().max(), (lse - right_lse).abs().max()]
    own_s = setting.time_s(lambda: kernels.attend_paged(q, *rest))
    plain_s = setting.time_s(lambda: PlainKernels().attend_paged(q, *rest), 1)
    seen = sum(lengths if shape.window is None else (min(length, shape.window) for length in lengths))
    return path, float(max(errors)), own_s, plain_s, seen * shape.layout.row_elems * dtype.itemsize


def _prefill(setting: Setting, kernels: Kernels, found: Findings) -> None:
    dtype, new = getattr(torch, setting.scale.dtype), setting.scale.new_tokens
    layout, total = GqaLayout(dtype, 8, 128), setting.scale.kernel_tokens
    (path,) = kernels.prepare([HeadShape(False, dtype, 32, 8, 128, 128)]).values()
    k, v = layout.split(torch.randn((total, layout.row_elems), device=setting.device).to(dtype))
    q = torch.randn((32, new, 128), device=setting.device).to(dtype)
    table = found.table(
        f"Prefill, {new} tokens behind {total - new}", "window", "path", "largest error", "ms", "ms plain"
    )
    for window in (None, 128):
        arguments = (q, k, v, total - new, window, 128**-0.5)
        out, right = kernels.attend_causal(*arguments)[0], PlainKernels().attend_causal(*arguments)[0]
        error = float((out.float() - right.float()).abs().max())
        own_s = setting.time_s(lambda a=arguments: kernels.attend_causal(*a))  # type: ignore[misc]
        plain_s = setting.time_s(lambda a=arguments: PlainKernels().attend_causal(*a), 1)  # type: ignore[misc]
        table.rows.append([window or "none", path, f"{error:.1e}", _ms(own_s), _ms(plain_s)])
        found.verdict(f"prefill with window {window or 'none'} is right", f"{error:.1e}", error <= TOLERANCE)


def _big_pool(setting: Setting, kernels: Kernels, found: Findings) -> None:
    """More than 2^31 elements."""
    if torch.cuda.mem_get_info(setting.device)[0] < _BIG_POOL_BYTES:
        raise SkipStepError("a pool of more than 2^31 elements needs 5 GiB of free device memory")
    layout = GqaLayout(torch.bfloat16, 8, 128)
    far = (1 << 31) // (64 * layout.row_elems) + 9
    pages = torch.zeros((far + 1, 64, layout.row_elems), dtype=torch.bfloat16, device=setting.device)
    pages[far].normal_()
    table = torch.tensor([[far]], dtype=torch.int32, device=setting.device)
    batch = PagedBatch(table, torch.tensor([50], device=setting.device), [50], 64)
    arguments = (torch.randn((1, 32, 128), device=setting.device).bfloat16(), pages, layout.split, batch, None, 0.1)
    out, right = kernels.attend_paged(*arguments)[0], PlainKernels().attend_paged(*arguments)[0]
    error = float((out.float() - right.float()).abs().max())
    found.verdict("a pool of more than 2^31 elements is read right", f"{error:.1e}", error <= TOLERANCE)


def _pages(device: torch.device, shape: _Shape, lengths: list[int]) -> tuple[torch.Tensor, PagedBatch]:
    """One of two layers of a pool, its blocks shuffled."""
    tokens = shape.block_tokens
    counts = [-(-length // tokens) for length in lengths]
    ids = torch.randperm(sum(counts), device=device).to(torch.int32)
    table = torch.zeros((len(lengths), max(counts)), dtype=torch.int32, device=device)
    for row, (count, part) in enumerate(zip(counts, torch.split(ids, counts), strict=True)):
        table[row, :count] = part
    pool = torch.empty((sum(counts), 2, tokens, shape.layout.row_elems), dtype=shape.layout.dtype, device=device)
    return pool.normal_()[:, 1], PagedBatch(table, torch.tensor(lengths, device=device), lengths, tokens)


def _kv_heads(layout: KvLayout) -> int:
    return layout.kv_heads if isinstance(layout, GqaLayout) else 1


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"

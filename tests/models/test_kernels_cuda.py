"""The choice among CUDA kernels, tested without a GPU: a stand-in for ``varlen_attn`` as it is documented."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dualpath.models.kernels import PagedBatch
from dualpath.models.kernels_cuda import CudaKernels
from dualpath.models.kernels_plain import PlainKernels
from dualpath.models.layout import GqaLayout, MlaLayout
from dualpath.models.merge import Attended

LAYOUT = GqaLayout(torch.bfloat16, 2, 16)


class FakeVarlen:
    """Attention of ragged sequences, bottom-right aligned, one by one; ``page_multiple`` mimics a build's limit."""

    def __init__(self, page_multiple: int = 1, wrong: bool = False) -> None:
        self.page_multiple = page_multiple
        self.wrong = wrong
        self.calls: list[str] = []

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_q: torch.Tensor, cu_k: Any, max_q: int, max_k: int,
        *, return_aux: Any, scale: float, window_size: tuple[int, int], enable_gqa: bool, num_splits: int,
        seqused_k: torch.Tensor | None = None, block_table: torch.Tensor | None = None,
    ) -> Attended:  # fmt: skip
        assert q.dtype == k.dtype == torch.bfloat16
        assert cu_q.dtype == torch.int32
        assert return_aux.lse
        assert num_splits == 1
        assert enable_gqa == (q.shape[1] != k.shape[-2])
        self.calls.append("flat" if block_table is None else "paged")
        if block_table is not None and k.shape[1] % self.page_multiple:
            raise RuntimeError("Paged KV cache block size must be divisible by 256")
        outs, lses = [], []
        for i in range(len(cu_q) - 1):
            part = q[cu_q[i] : cu_q[i + 1]].transpose(0, 1)
            if block_table is not None:
                assert seqused_k is not None
                keys, values = (t[block_table[i].long()].flatten(0, 1)[: seqused_k[i]] for t in (k, v))
            else:
                end = cu_k[i + 1] if seqused_k is None else cu_k[i] + seqused_k[i]
                keys, values = k[cu_k[i] : end], v[cu_k[i] : end]
            before = len(keys) - part.shape[1]
            if window_size == (-1, -1):
                out, lse = PlainKernels().attend_all(part, keys, values, scale)
            else:
                window = None if window_size[0] < 0 else window_size[0] + 1
                out, lse = PlainKernels().attend_causal(part, keys, values, before, window, scale)
            outs.append(out + 1 if self.wrong else out)
            lses.append(lse)
        return torch.cat(outs), torch.cat(lses).transpose(0, 1)


def _install(monkeypatch: pytest.MonkeyPatch, fake: FakeVarlen) -> CudaKernels:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", fake)
    return CudaKernels(torch.device("cpu"))


def _compare(kernels: CudaKernels) -> None:
    torch.manual_seed(0)
    k, v = LAYOUT.split(torch.randn(90, LAYOUT.row_elems).bfloat16())
    q, plain = torch.randn(4, 20, 16).bfloat16(), PlainKernels()
    for window in (None, 30):
        ours, right = (each.attend_causal(q, k, v, 70, window, 0.25) for each in (kernels, plain))
        torch.testing.assert_close(ours, right, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(kernels.attend_all(q, k, v, 0.25), plain.attend_all(q, k, v, 0.25))
    pool = torch.randn(4, 3, 64, LAYOUT.row_elems).bfloat16()
    table, lengths = torch.tensor([[1, 3], [2, 0]], dtype=torch.int32), [70, 9]
    pool[3, :, 6:] = torch.nan
    for window in (None, 30):
        batch = PagedBatch(table, torch.tensor(lengths), lengths, 64)
        arguments = (torch.randn(2, 4, 16).bfloat16(), pool[:, 1], LAYOUT.split, batch, window, 0.25)
        ours, right = kernels.attend_paged(*arguments), plain.attend_paged(*arguments)
        torch.testing.assert_close(ours, right, atol=1e-2, rtol=1e-2)


def test_pages_are_read_in_place_where_the_kernel_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeVarlen()
    _compare(_install(monkeypatch, fake))
    assert fake.calls[-2:] == ["paged", "paged"]


def test_pages_are_gathered_where_the_kernel_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeVarlen(page_multiple=256)
    _compare(_install(monkeypatch, fake))
    assert fake.calls[-2:] == ["flat", "flat"]
    assert fake.calls.count("paged") == 1, "a refusal is remembered"


def test_a_wrong_kernel_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeVarlen(wrong=True)
    kernels = _install(monkeypatch, fake)
    _compare(kernels)
    tries = len(fake.calls)
    _compare(kernels)
    assert len(fake.calls) == tries


def test_without_varlen_everything_is_plain() -> None:
    _compare(CudaKernels(torch.device("cpu")))  # the real varlen_attn refuses CPU tensors


def test_float32_and_large_heads_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeVarlen()
    kernels = _install(monkeypatch, fake)
    k, v = GqaLayout(torch.float32, 2, 16).split(torch.randn(9, 64))
    kernels.attend_causal(torch.randn(2, 3, 16), k, v, 6, None, 0.25)
    k, v = MlaLayout(torch.bfloat16, 512, 64).split(torch.randn(9, 576).bfloat16())
    kernels.attend_causal(torch.randn(2, 3, 576).bfloat16(), k, v, 6, None, 0.25)
    assert fake.calls == []

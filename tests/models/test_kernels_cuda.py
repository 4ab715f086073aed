"""The choice among CUDA kernels, tested without a GPU: Flash by a stand-in that refuses, paging by the interpreter."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from tests.models.fake_flash import FakeFlash
from tests.models.paged_cases import batch_of

from dualpath.models.attention import Scores
from dualpath.models.kernels import plain as plain_module
from dualpath.models.kernels.contract import HeadShape, PagedBatch
from dualpath.models.kernels.cuda import CudaKernels
from dualpath.models.kernels.plain import PlainKernels
from dualpath.models.layout import GqaLayout, MlaLayout
from dualpath.models.mla import MlaAttention

LAYOUT = GqaLayout(torch.bfloat16, 2, 16)
SHAPES = [HeadShape(False, torch.bfloat16, 4, 2, 16, 16), HeadShape(True, torch.bfloat16, 4, 2, 16, 16)]
NAMES = ["prefill 4:2 x 16 bfloat16", "decode 4:2 x 16 bfloat16"]
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero")


def _install(monkeypatch: pytest.MonkeyPatch, fake: FakeFlash) -> CudaKernels:
    monkeypatch.setattr("dualpath.models.kernels.flash.flash_op", lambda: fake)
    return CudaKernels(torch.device("cpu"))


def _paged_inputs(block_tokens: int = 64) -> tuple[torch.Tensor, torch.Tensor, PagedBatch]:
    pool = torch.randn(4, 3, block_tokens, LAYOUT.row_elems).bfloat16()
    pool[3, :, 6:] = torch.nan
    batch = batch_of([[1, 3], [2, 0]], [block_tokens + 6, 9], block_tokens)
    return torch.randn(2, 4, 16).bfloat16(), pool[:, 1], batch


def _compare(kernels: CudaKernels) -> None:
    torch.manual_seed(0)
    k, v = LAYOUT.split(torch.randn(90, LAYOUT.row_elems).bfloat16())
    plain = PlainKernels()
    for queries in (20, 1):
        q = torch.randn(4, queries, 16).bfloat16()
        for window in (None, 30):
            ours, right = (each.attend_causal(q, k, v, 90 - queries, window, 0.25) for each in (kernels, plain))
            torch.testing.assert_close(ours, right, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(kernels.attend_all(q, k, v, 0.25), plain.attend_all(q, k, v, 0.25))
    q, pages, batch = _paged_inputs()
    for window in (None, 30):
        arguments = (q, pages, LAYOUT.split, batch, window, 0.25)
        ours, right = kernels.attend_paged(*arguments), plain.attend_paged(*arguments)
        torch.testing.assert_close(ours, right, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("is_old", [False, True], ids=["torch-2.13", "torch-2.11"])
def test_flash_prefills_and_the_paged_kernel_decodes(monkeypatch: pytest.MonkeyPatch, is_old: bool) -> None:
    kernels = _install(monkeypatch, FakeFlash(is_old=is_old))
    assert kernels.prepare(SHAPES) == dict(zip(NAMES, ["flash", "triton"], strict=True))
    _compare(kernels)
    assert kernels.calls == {"prefill flash": 5, "decode triton": 2}


def test_a_shape_is_tried_when_the_model_is_loaded_and_not_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeFlash()
    kernels = _install(monkeypatch, fake)
    kernels.prepare(SHAPES)
    tries = fake.num_calls
    assert tries > 0
    q, k = torch.randn(4, 5, 16).bfloat16(), torch.randn(9, 2, 16).bfloat16()
    kernels.attend_causal(q, k, k, 4, None, 0.25)
    assert fake.num_calls == tries + 1


def test_a_wrong_kernel_is_not_used_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = _install(monkeypatch, FakeFlash(wrong=True))
    with caplog.at_level(logging.WARNING):
        assert kernels.prepare(SHAPES)[NAMES[0]] == "plain"
    assert "wrong results" in caplog.text
    _compare(kernels)
    assert kernels.calls["prefill flash"] == 0


def test_a_refusal_is_a_warning_too(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: object) -> None:
        raise ImportError("no module named triton")

    monkeypatch.setattr("dualpath.models.kernels.cuda._triton", lambda: refuse)
    kernels = _install(monkeypatch, FakeFlash())
    with caplog.at_level(logging.WARNING):
        assert kernels.prepare(SHAPES)[NAMES[1]] == "plain"
    assert "no module named triton" in caplog.text
    _compare(kernels)


def test_being_out_of_memory_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeFlash(out_of_memory=True)
    kernels = _install(monkeypatch, fake)
    with pytest.raises(torch.OutOfMemoryError):
        kernels.prepare(SHAPES)
    fake.out_of_memory = False
    assert kernels.prepare(SHAPES)[NAMES[0]] == "flash", "nothing was remembered"


def test_the_real_operator_refuses_cpu_tensors_and_prefill_is_plain() -> None:
    kernels = CudaKernels(torch.device("cpu"))
    assert kernels.prepare(SHAPES)[NAMES[0]] == "plain"
    _compare(kernels)


def test_float32_decodes_by_the_kernel_and_prefills_plainly_as_large_heads_do(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeFlash()
    kernels = _install(monkeypatch, fake)
    shapes = [
        HeadShape(False, torch.float32, 4, 2, 16, 16),
        HeadShape(True, torch.float32, 4, 2, 16, 16),
        HeadShape(False, torch.bfloat16, 2, 1, 576, 576),
        HeadShape(False, torch.bfloat16, 2, 1, 20, 20),
        HeadShape(True, torch.bfloat16, 2, 1, 40, 32),
    ]
    assert list(kernels.prepare(shapes).values()) == ["plain", "triton", "plain", "plain", "triton"]
    assert fake.num_calls == 0


def test_plain_paging_needs_memory_for_a_piece_not_for_the_longest_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 requests, one of 32K: what is copied at a time stays within the scratch, and the result is the same."""
    layout = GqaLayout(torch.float32, 1, 8)
    lengths = [3000, *[5] * 15]
    pool = torch.randn(64, 64, layout.row_elems)
    table = [list(range(47)), *[[47 + i] + [0] * 46 for i in range(15)]]
    arguments = (torch.randn(16, 2, 8), pool, layout.split, batch_of(table, lengths, 64), None, 0.3)
    whole = PlainKernels().attend_paged(*arguments)
    gathered: list[int] = []
    visible = PlainKernels.attend_visible

    def watch(self: PlainKernels, q: torch.Tensor, k: torch.Tensor, *rest: object) -> object:
        gathered.append(k.shape[0] * k.shape[1])
        return visible(self, q, k, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(PlainKernels, "attend_visible", watch)
    monkeypatch.setattr(plain_module, "SCRATCH_BYTES", 1024 * (16 * 12 + 24))
    again = PlainKernels().attend_paged(*arguments[:3], batch_of(table, lengths, 64), None, 0.3)
    torch.testing.assert_close(again, whole)
    assert max(gathered) <= 1024, "padded to the longest it would be 16 x 3,008 rows"


def test_absorbed_attention_asks_for_its_values_only(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = MlaLayout(torch.bfloat16, 32, 8)
    kernels = _install(monkeypatch, FakeFlash())
    pages = torch.randn(3, 16, layout.row_elems).bfloat16()
    arguments = (torch.randn(1, 4, 40).bfloat16(), pages, layout.split, batch_of([[2, 1]], [20], 16), None, 0.2)
    out, _ = kernels.attend_paged(*arguments, 32)
    right, _ = PlainKernels().attend_paged(*arguments)
    assert out.shape == (1, 4, 32)
    torch.testing.assert_close(out, right[..., :32], atol=1e-2, rtol=1e-2)


def test_sparse_prefill_looks_at_a_few_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 heads x 512 queries x 32K keys of scores would be 8.6 GB, three times over."""
    layout = MlaLayout(torch.float32, 32, 8, 4)
    torch.manual_seed(0)
    module = SimpleNamespace(
        kv_b_proj=torch.nn.Linear(32, 4 * 24, bias=False), qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=8
    )
    q, rows = torch.randn(4, 50, 24), torch.randn(90, layout.row_elems)
    scores = Scores(0.2, None, torch.stack([torch.randperm(41 + i)[:9] for i in range(50)])[None])
    attention = MlaAttention(layout, PlainKernels())
    whole = attention.prefill(module, q, rows, 40, scores)  # type: ignore[arg-type]
    queries: list[int] = []
    visible = PlainKernels.attend_visible

    def watch(self: PlainKernels, part: torch.Tensor, *rest: object) -> object:
        queries.append(part.shape[2])
        return visible(self, part, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(PlainKernels, "attend_visible", watch)
    monkeypatch.setattr(plain_module, "SCRATCH_BYTES", 4 * 4 * 90 * 7)
    again = attention.prefill(module, q, rows, 40, scores)  # type: ignore[arg-type]
    torch.testing.assert_close(again, whole)
    assert max(queries) == 7

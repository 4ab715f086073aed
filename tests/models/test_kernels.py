"""Every CPU kernel agrees with attention written out plainly, over awkward shapes, pages and unwritten memory."""

from __future__ import annotations

import random

import pytest
import torch

from dualpath.models.kernels import cpu
from dualpath.models.kernels.contract import PagedBatch
from dualpath.models.kernels.cpu import CpuKernels
from dualpath.models.kernels.merge import Attended, merge_by_owner, merge_padded, merge_two
from dualpath.models.kernels.paged_plan import plan_pages
from dualpath.models.kernels.plain import PlainKernels
from dualpath.models.layout import GqaLayout, KvLayout, MlaLayout

LAYOUTS = [GqaLayout(torch.float32, 2, 16), MlaLayout(torch.float32, 32, 8), MlaLayout(torch.float32, 32, 8, 4)]
SCALE = 0.3


def _rows(layout: KvLayout, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, layout.row_elems).to(layout.dtype)


def _head_dim(layout: KvLayout) -> int:
    return layout.split(_rows(layout, 1))[0].shape[-1]


def _assert_same(ours: Attended, right: Attended, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours[0].float(), right[0].float(), atol=atol, rtol=atol)
    torch.testing.assert_close(ours[1], right[1], atol=atol, rtol=atol)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [None, 1, 7, 64, 5000])
@pytest.mark.parametrize(("num_cached", "num_new"), [(0, 1), (0, 300), (63, 1), (64, 5), (777, 270)])
def test_causal(layout: KvLayout, window: int | None, num_cached: int, num_new: int) -> None:
    torch.manual_seed(0)
    k, v = layout.split(_rows(layout, num_cached + num_new))
    q = torch.randn(num_new, 4, k.shape[-1]).transpose(0, 1)
    arguments = (q, k, v, num_cached, window, SCALE)
    _assert_same(CpuKernels().attend_causal(*arguments), PlainKernels().attend_causal(*arguments))


@pytest.mark.parametrize("num_cached", [100, 1000])
def test_causal_bfloat16(num_cached: int) -> None:
    torch.manual_seed(0)
    layout = GqaLayout(torch.bfloat16, 2, 32)
    k, v = layout.split(_rows(layout, num_cached + 9))
    arguments = (torch.randn(6, 9, 32).bfloat16(), k, v, num_cached, None, SCALE)
    _assert_same(CpuKernels().attend_causal(*arguments), PlainKernels().attend_causal(*arguments), atol=2e-2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_visible(layout: KvLayout) -> None:
    torch.manual_seed(0)
    k, v = layout.split(_rows(layout, 2, 90))
    q = torch.randn(2, 4, 300, k.shape[-1])
    visible = torch.rand(2, 300, 90) < 0.2
    visible[..., 17] = True
    arguments = (q, k, v, visible, SCALE)
    _assert_same(CpuKernels().attend_visible(*arguments), PlainKernels().attend_visible(*arguments))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [None, 1, 16, 50])
@pytest.mark.parametrize("lengths", [[1], [16, 17, 15], [160, 1, 33, 300], [400] + [3] * 30])
@pytest.mark.parametrize("order", ["runs", "shuffled", "shared"])
@pytest.mark.parametrize("whole_tokens", [0, cpu.WHOLE_TOKENS])
def test_paged(
    layout: KvLayout,
    window: int | None,
    lengths: list[int],
    order: str,
    whole_tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "WHOLE_TOKENS", whole_tokens)
    torch.manual_seed(0)
    pages, batch = _paged(layout, lengths, order)
    q = torch.randn(len(lengths), 4, _head_dim(layout))
    arguments = (q, pages, layout.split, batch, window, SCALE)
    right = PlainKernels().attend_paged(*arguments)
    assert right[0].isfinite().all()
    for _ in range(2):  # the second call reuses the first one's plan and buffers, as the next layer does
        _assert_same(CpuKernels().attend_paged(*arguments), right)


def _paged(layout: KvLayout, lengths: list[int], order: str) -> tuple[torch.Tensor, PagedBatch]:
    """One layer of a pool, NaN wherever no request has written."""
    block_tokens, layers = 16, 3
    counts = [-(-length // block_tokens) for length in lengths]
    blocks = list(range(2, 2 + sum(counts)))
    if order == "shuffled":
        random.Random(1).shuffle(blocks)
    pool = torch.full((sum(counts) + 3, layers, block_tokens, layout.row_elems), torch.nan)
    width = max(counts) + 1
    table, first = [], 0
    for length, count in zip(lengths, counts, strict=True):
        mine = blocks[first : first + count]
        first += count
        for i, block in enumerate(mine):
            tokens = min(block_tokens, length - i * block_tokens)
            pool[block, :, :tokens] = _rows(layout, layers, tokens)
        if order == "shared" and table and count > 2:  # two requests may read the same stored prefix
            mine[:2] = [2, 2] if lengths[0] < 2 * block_tokens else [2, 3]
            pool[2:4] = pool[2:4].nan_to_num(0.5)
        table.append([*mine, *[0] * (width - count)])
    return pool[:, 1], PagedBatch(torch.tensor(table, dtype=torch.int32), torch.tensor(lengths), lengths, block_tokens)


@pytest.mark.parametrize(("scratch_bytes", "is_planned"), [(3 * 300 * 4 * 16, False), (3 * 300 * 4 * 16 - 1, True)])
def test_no_more_is_copied_than_scratch_memory(
    scratch_bytes: int, is_planned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = GqaLayout(torch.float32, 1, 8)
    monkeypatch.setattr(cpu, "SCRATCH_BYTES", scratch_bytes)
    pages, batch = _paged(layout, [300, 20, 1], "runs")
    CpuKernels().attend_paged(torch.randn(3, 4, 8), pages, layout.split, batch, None, SCALE)
    assert (None in batch.memo) == is_planned


def test_plan_reads_runs_in_place() -> None:
    lengths = [16 * 16 + 5] * 8
    _, batch = _paged(LAYOUTS[0], lengths, "runs")
    plan = plan_pages(batch, None)
    assert sum(run.num_blocks for run in plan.runs) == 16 * 8
    assert plan.gathered_blocks is not None
    assert len(plan.gathered_blocks) == 8, "only the last, partly filled blocks are copied"


def test_merging_parts_is_attention_over_the_whole() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(4, 6, 8), torch.randn(50, 2, 8), torch.randn(50, 2, 8)
    plain = PlainKernels()
    whole = plain.attend_all(q, k, v, SCALE)
    parts = [plain.attend_all(q, k[a:b], v[a:b], SCALE) for a, b in ((0, 7), (7, 8), (8, 50))]
    _assert_same(merge_two(merge_two(parts[0], parts[1]), parts[2]), whole)
    out, lse = torch.stack([p[0] for p in parts]), torch.stack([p[1] for p in parts])
    merged = merge_by_owner(out, lse, torch.zeros(3, dtype=torch.int64), 1)
    _assert_same((merged[0][0], merged[1][0]), whole)
    padded = torch.cat((out, torch.zeros_like(out[:1])))[None]
    merged = merge_padded(padded, torch.cat((lse, torch.full_like(lse[:1], -torch.inf)))[None])
    _assert_same((merged[0][0], merged[1][0]), whole)

"""Models on a GPU: the same seam, the same tokens; kernels that are refused fall back to ones that are right."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tests.models.little_engine import Conversation, LittleEngine

from dualpath.models.families import SUPPORTED_FAMILIES
from dualpath.models.init import init_model
from dualpath.models.kernels import PagedBatch
from dualpath.models.kernels_plain import PlainKernels
from dualpath.models.layout import GqaLayout
from dualpath.models.load import load_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("family", SUPPORTED_FAMILIES)
def test_float32_tokens_equal_the_cpu(family: str, tmp_path: Path) -> None:
    path = init_model(family, tmp_path / family, seed=1)
    generated = []
    for device in ("cpu", "cuda"):
        torch.backends.cuda.matmul.allow_tf32 = False
        engine = LittleEngine(load_model(path, dtype="float32", device=device, fingerprint="00"), block_tokens=32)
        draw = random.Random(5)
        conversations = [Conversation() for _ in range(3)]
        turns = [[[draw.randrange(32, 127) for _ in range(70)] for _ in conversations] for _ in range(3)]
        generated.append([engine.turn(conversations, new, 5) for new in turns])
    assert generated[0] == generated[1]


@pytest.mark.parametrize("family", SUPPORTED_FAMILIES)
def test_bfloat16_logits_are_close_to_float32(family: str, tmp_path: Path) -> None:
    """Tokens may differ in bf16 (they do in transformers, too); logits of a cached context must not differ much."""
    path = init_model(family, tmp_path / family, seed=1)
    draw = random.Random(6)
    tokens = [draw.randrange(32, 127) for _ in range(300)]
    truth, _ = LittleEngine(load_model(path, dtype="float32", fingerprint="00")).prefill([Conversation(tokens)])
    engine = LittleEngine(load_model(path, dtype="bfloat16", device="cuda", fingerprint="00"))
    first, rows = engine.prefill([Conversation(tokens[:-1])])
    pool, blocks = engine.fill_pool(rows, 1)
    decoded = engine.model.decode(engine.batch([tokens[-1]], [299], blocks), pool)
    cosine = torch.nn.functional.cosine_similarity(decoded[0].cpu(), truth[0], dim=0)
    assert cosine > 0.98
    assert first.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("block_tokens", [64, 256])
def test_kernels_agree_with_plain_ones(dtype: torch.dtype, window: int | None, block_tokens: int) -> None:
    from dualpath.models.kernels_cuda import cuda_kernels

    torch.manual_seed(0)
    device = torch.device("cuda")
    layout = GqaLayout(dtype, 2, 64)
    kernels, plain, tolerance = cuda_kernels(device), PlainKernels(), 1e-4 if dtype == torch.float32 else 3e-2
    k, v = layout.split(torch.randn(300, layout.row_elems, device=device).to(dtype))
    q = torch.randn(8, 40, 64, device=device).to(dtype)
    ours, right = (k_.attend_causal(q, k, v, 260, window, 0.125) for k_ in (kernels, plain))
    torch.testing.assert_close(ours, right, atol=tolerance, rtol=tolerance)
    pool = torch.randn(6, 3, block_tokens, layout.row_elems, device=device).to(dtype)
    table = torch.tensor([[1, 4], [5, 0]], dtype=torch.int32, device=device)
    lengths = [block_tokens + 7, 3]
    pool[4, :, 7:], pool[5, :, 3:] = torch.nan, torch.nan
    arguments = (torch.randn(2, 8, 64, device=device).to(dtype), pool[:, 1], layout.split)
    ours, right = (
        k_.attend_paged(
            *arguments, PagedBatch(table, torch.tensor(lengths, device=device), lengths, block_tokens), window, 0.125
        )
        for k_ in (kernels, plain)
    )
    torch.testing.assert_close(ours, right, atol=tolerance, rtol=tolerance)

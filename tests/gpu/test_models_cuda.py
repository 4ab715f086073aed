"""Models on a GPU: the same seam, the same tokens; and each test says which kernels have run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tests.models.little_engine import Conversation, LittleEngine
from tests.models.paged_cases import Case

from dualpath.models.families import SUPPORTED_FAMILIES
from dualpath.models.init import init_model
from dualpath.models.kernels.contract import PagedBatch
from dualpath.models.kernels.cuda import CudaKernels
from dualpath.models.kernels.plain import PlainKernels
from dualpath.models.layout import GqaLayout, MlaLayout
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
    model = load_model(path, dtype="bfloat16", device="cuda", fingerprint="00")
    prefill, *_, decode = model.kernel_paths.values()  # between them: absorbed prefill, which these shapes do not take
    assert (prefill, decode) == ("flash", "triton")
    engine = LittleEngine(model)
    first, rows = engine.prefill([Conversation(tokens[:-1])])
    pool, blocks = engine.fill_pool(rows, 1)
    decoded = engine.model.decode(engine.batch([tokens[-1]], [299], blocks), pool)
    cosine = torch.nn.functional.cosine_similarity(decoded[0].cpu(), truth[0], dim=0)
    assert cosine > 0.98
    assert first.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 20])
def test_prefill_agrees_with_plain_attention(dtype: torch.dtype, window: int | None) -> None:
    torch.manual_seed(0)
    device = torch.device("cuda", 0)
    layout = GqaLayout(dtype, 2, 64)
    kernels, tolerance = CudaKernels(device), 1e-4 if dtype == torch.float32 else 3e-2
    k, v = layout.split(torch.randn(300, layout.row_elems, device=device).to(dtype))
    q = torch.randn(8, 40, 64, device=device).to(dtype)
    ours, right = (each.attend_causal(q, k, v, 260, window, 0.125) for each in (kernels, PlainKernels()))
    torch.testing.assert_close(ours, right, atol=tolerance, rtol=tolerance)
    assert kernels.calls == {"prefill plain" if dtype == torch.float32 else "prefill flash": 1}


@pytest.mark.parametrize("seed", range(60))
def test_decode_agrees_with_plain_attention(seed: int) -> None:
    Case.random(seed, max_tokens=5000).check("cuda")


@pytest.mark.parametrize("layout", [GqaLayout(torch.bfloat16, 8, 128), MlaLayout(torch.bfloat16, 512, 64)], ids=str)
def test_long_contexts_beside_short_ones(layout: GqaLayout | MlaLayout) -> None:
    is_mla = isinstance(layout, MlaLayout)
    dim, value_dim = (576, 512) if is_mla else (128, 128)
    Case(layout, 128 if is_mla else 32, dim, value_dim, 64, [32768] * 7 + [70], None, 1).check("cuda")


def test_a_pool_of_more_than_two_to_the_31_elements() -> None:
    layout = GqaLayout(torch.bfloat16, 8, 128)
    far = (1 << 31) // (64 * layout.row_elems) + 9
    if torch.cuda.mem_get_info()[0] < 6 * 1024**3:
        pytest.skip("needs 6 GiB of device memory")
    pages = torch.zeros((far + 1, 64, layout.row_elems), dtype=torch.bfloat16, device="cuda")
    pages[far].normal_()
    table = torch.tensor([[far]], dtype=torch.int32, device="cuda")
    batch = PagedBatch(table, torch.tensor([50], device="cuda"), [50], 64)
    arguments = (torch.randn(1, 32, 128, device="cuda").bfloat16(), pages, layout.split, batch, None, 0.1)
    kernels = CudaKernels(torch.device("cuda", 0))
    ours, right = kernels.attend_paged(*arguments), PlainKernels().attend_paged(*arguments)
    torch.testing.assert_close(ours, right, atol=3e-2, rtol=3e-2)
    assert kernels.calls == {"decode triton": 1}

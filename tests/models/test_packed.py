"""Linear layers whose weights are in oneDNN's order: the same numbers, the right ones in place, memory not doubled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dualpath.models.load import load_model
from dualpath.models.packed import PackedLinear, pack_linears, packed_weights

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()),
    reason="weights are packed on CPUs with AVX-512 and bfloat16 only",
)
DTYPES = [torch.float32, torch.bfloat16]


def _layers(dtype: torch.dtype, *, bias: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 160, bias=bias), nn.Linear(160, 32, bias=bias)).to(dtype).eval()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(96,), (1, 1, 96), (2, 96), (2, 1, 96), (3, 96), (4, 1, 96), (1, 70, 96), (0, 96)])
def test_computes_what_it_did(dtype: torch.dtype, bias: bool, shape: tuple[int, ...]) -> None:
    plain, ours = _layers(dtype, bias=bias), _layers(dtype, bias=bias)
    pack_linears(ours)
    assert all(isinstance(module, PackedLinear) for module in ours)
    x = torch.randn(shape).to(dtype)
    with torch.inference_mode():
        out = ours(x)
        assert out.shape == (*shape[:-1], 32)
        assert out.dtype == dtype
        torch.testing.assert_close(out, plain(x), atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_are_overwritten_are_computed_with(dtype: torch.dtype) -> None:
    ours, other = _layers(dtype), _layers(dtype)
    pack_linears(ours)
    with torch.no_grad():
        other[0].weight.mul_(-2)
    packed_weights(ours)["0.weight"].overwrite(other[0].weight)
    for rows in (1, 8):
        x = torch.randn(rows, 96).to(dtype)
        with torch.inference_mode():
            torch.testing.assert_close(ours(x), other(x), atol=1e-5 if dtype == torch.float32 else 5e-2, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_has_its_weights_once(dtype: torch.dtype) -> None:
    ours = _layers(dtype)
    weight = ours[0].weight.detach().clone()
    pack_linears(ours)
    assert ours[0].weight.is_mkldnn
    assert torch.equal(weight, ours[0].weight.to_dense())
    assert ours.state_dict().keys() == {"0.weight", "1.weight"}
    assert sum(tensor.numel() for tensor in ours.state_dict().values()) == 96 * 160 + 160 * 32
    assert not list(ours.buffers())


def test_a_row_in_float32_is_the_same_beside_others() -> None:
    ours = _layers(torch.float32)
    pack_linears(ours)
    x = torch.randn(8, 96)
    with torch.inference_mode():
        together = ours(x)
        for num_rows in range(1, 8):
            assert torch.equal(ours(x[:num_rows]), together[:num_rows])


def test_layers_that_are_read_elsewhere_or_are_more_than_linear_stay() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = nn.ModuleDict({"kv_b_proj": nn.Linear(8, 8), "own": Scaled(8, 8), "float16": nn.Linear(8, 8).half()})
    pack_linears(model)
    assert not packed_weights(model)


def test_a_model_is_loaded_so_for_a_cpu_unless_it_is_to_be_copied(tiny_model_dir: Callable[[str], Path]) -> None:
    path = tiny_model_dir("llama")
    assert "lm_head.weight" in packed_weights(load_model(path, fingerprint="00")._model)
    assert not packed_weights(load_model(path, fingerprint="00", packs=False)._model)

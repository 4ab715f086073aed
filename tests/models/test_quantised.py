"""Checkpoints as released in FP8 blocks or MXFP4 compute what their dequantised weights compute."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dualpath.models.load import load_model

BLOCK = 128
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def _copy(source: Path, target: Path, tensors: dict[str, torch.Tensor], quantised: dict | None) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors")
    config = json.loads((target / "config.json").read_text())
    config["dtype"] = "bfloat16"
    if quantised is not None:
        config["quantization_config"] = quantised
    (target / "config.json").write_text(json.dumps(config))
    return target


def _tensors(model_dir: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in model_dir.glob("*.safetensors"):
        found |= load_file(path)
    return {name: tensor.bfloat16() for name, tensor in found.items()}


def _weights_are_equal(ours: Path, right: Path) -> None:
    loaded, plain = (load_model(path, fingerprint="00", packs=False)._model.state_dict() for path in (ours, right))
    assert loaded.keys() == plain.keys()
    for name, weight in plain.items():
        assert (
            loaded[name].dtype == weight.dtype == torch.bfloat16 or not weight.is_floating_point() or "e_score" in name
        )
        torch.testing.assert_close(loaded[name].float(), weight.float(), atol=0, rtol=1e-2, msg=name)


@pytest.mark.parametrize("family", ["qwen3", "deepseek_v3"])
def test_fp8_blocks_the_last_not_whole(family: str, model_dir_of: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    plain, quantised = _tensors(model_dir_of(family)), {}
    for name, weight in list(plain.items()):
        quantised[name] = weight
        if "_proj" in name and name.endswith(".weight"):
            rows, columns = weight.shape
            grid = torch.full((-(-rows // BLOCK), -(-columns // BLOCK)), 2.0**-7)
            grid[0, 0] = 2.0**-6
            scale = grid.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
            quantised[name] = (weight.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
            quantised[f"{name}_scale_inv"] = grid
            plain[name] = (quantised[name].float() * scale).bfloat16()
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
    source = model_dir_of(family)
    ours = _copy(source, tmp_path / "fp8", quantised, config)
    _weights_are_equal(ours, _copy(source, tmp_path / "plain", plain, None))


def test_mxfp4(model_dir_of: Callable[[str], Path], tmp_path: Path) -> None:
    source = model_dir_of("gpt_oss")
    plain, quantised = _tensors(source), {}
    torch.manual_seed(0)
    for name, weight in list(plain.items()):
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, columns, rows = weight.shape  # in the checkpoint: transposed, 32 values of a row in 16 bytes
            blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
            scales = torch.randint(118, 124, (experts, rows, columns // 32), dtype=torch.uint8)
            quantised[f"{name}_blocks"], quantised[f"{name}_scales"] = blocks, scales
            values = torch.stack((E2M1[(blocks & 15).long()], E2M1[(blocks >> 4).long()]), dim=-1).flatten(-2)
            values = values * torch.exp2(scales.float() - 127)[..., None]
            plain[name] = values.flatten(-2).transpose(1, 2).bfloat16()
        else:
            quantised[name] = weight
    config = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
    }
    ours = _copy(source, tmp_path / "mxfp4", quantised, config)
    _weights_are_equal(ours, _copy(source, tmp_path / "plain", plain, None))

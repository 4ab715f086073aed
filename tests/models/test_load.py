"""What a directory must be to be served, what is refused and how the refusal reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dualpath.core.errors import ConfigError, UnsupportedModelError
from dualpath.models.families import SUPPORTED_FAMILIES
from dualpath.models.init_tokenizer import EOS_ID
from dualpath.models.load import load_model


@pytest.fixture
def llama(model_dir_of: Callable[[str], Path], tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(model_dir_of("llama"), copy)
    return copy


def _edit_config(model_dir: Path, **fields: Any) -> Path:
    path = model_dir / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return model_dir


def test_spec(llama: Path) -> None:
    spec = load_model(llama, dtype="bfloat16", fingerprint="ab").spec
    assert (spec.name, spec.family, spec.fingerprint) == ("copy", "llama", "ab")
    assert (spec.num_layers, spec.vocab_size, spec.max_context_tokens) == (4, 264, 32768)
    assert spec.bytes_per_token_layer == 2 * 2 * 32 * 2  # K and V, two heads of 32, two bytes
    assert spec.kv_dtype == torch.bfloat16
    assert spec.eos_token_ids == (EOS_ID,)
    assert spec.max_requests_per_forward is None
    assert load_model(llama, name="served", fingerprint="ab").spec.kv_dtype == torch.float32, "auto: the checkpoint's"


@pytest.mark.parametrize(
    ("rope", "max_tokens"),
    [
        ({"type": "yarn", "factor": 4.0}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512}, 1024),
        ({"rope_type": "linear", "factor": 2.0}, 2048),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": 128,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            1024,
        ),
        (None, 1024),
    ],
)
def test_scaled_positions_reach_further(llama: Path, rope: dict[str, Any] | None, max_tokens: int) -> None:
    """The field says what the model was trained for; llama3's scaling is in it already."""
    config = json.loads((llama / "config.json").read_text())
    config.pop("rope_parameters", None)
    (llama / "config.json").write_text(json.dumps(config))
    _edit_config(llama, max_position_embeddings=1024, rope_scaling=rope, rope_theta=10000.0)
    assert load_model(llama, fingerprint="ab").spec.max_context_tokens == max_tokens


@pytest.mark.parametrize("family", SUPPORTED_FAMILIES)
def test_latent_families_cache_little(family: str, model_dir_of: Callable[[str], Path]) -> None:
    spec = load_model(model_dir_of(family), fingerprint="00").spec
    expected = {"deepseek_v2": 64 + 16, "deepseek_v3": 64 + 16, "deepseek_v32": 64 + 16 + 32}.get(family, 128)
    assert spec.bytes_per_token_layer == 4 * expected
    assert spec.max_requests_per_forward == (1 if family == "deepseek_v32" else None)


def test_fingerprint_is_computed_if_not_given(llama: Path) -> None:
    from dualpath.models.fingerprint import fingerprint_model_dir

    assert load_model(llama).spec.fingerprint == fingerprint_model_dir(llama)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mamba2"}, "model_type 'mamba2' is not supported: one of llama, mistral"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"rope_scaling": {"type": "longrope"}}, "rope type 'longrope'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8 quantised checkpoints of llama are not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq quantised checkpoints of llama are not supported"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4 quantised checkpoints of llama are not supported"),
        ({"hidden_size": 96}, "cannot load"),
    ],
)
def test_refused_configs(llama: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        load_model(_edit_config(llama, **fields), fingerprint="00")
    assert "\n" not in str(caught.value)


def test_refused_directories(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="not a directory"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(UnsupportedModelError, match=r"no config\.json"):
        load_model(tmp_path)
    (llama / "config.json").write_text('{"model_type": "llama"')
    with pytest.raises(UnsupportedModelError, match="cannot read"):
        load_model(llama)
    (llama / "config.json").write_text("[]")
    with pytest.raises(UnsupportedModelError, match="not a JSON object"):
        load_model(llama)


def test_incomplete_and_truncated_weights_are_refused(llama: Path) -> None:
    path = llama / "model.safetensors"
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if "layers.2.mlp" not in k}, path, metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="lacks 3 weights"):
        load_model(llama, fingerprint="00")
    path.write_bytes(path.read_bytes()[:10000])
    with pytest.raises(UnsupportedModelError, match="cannot load"):
        load_model(llama, fingerprint="00")
    path.unlink()
    with pytest.raises(UnsupportedModelError, match="cannot load"):
        load_model(llama, fingerprint="00")


def test_bad_settings_are_refused(llama: Path) -> None:
    with pytest.raises(ConfigError, match="unknown dtype 'int8'"):
        load_model(llama, dtype="int8")
    with pytest.raises(ConfigError, match="unknown device 'tpu'"):
        load_model(llama, device="tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_gpu(llama: Path) -> None:
    with pytest.raises(ConfigError, match="no usable CUDA device"):
        load_model(llama, device="cuda")

"""The catalogue against published parameter counts and against transformers' own models, weight by weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dualpath.core.errors import ConfigError
from dualpath.models.init_config import FAMILIES as LIVE_FAMILIES
from dualpath.models.init_config import ModelSizes, family_config
from dualpath.sim.catalogue.config import FAMILIES, shape_from_config
from dualpath.sim.catalogue.find import find_model
from dualpath.sim.catalogue.models import MODELS
from dualpath.sim.catalogue.shape import ModelShape

SIZES = ModelSizes(
    layers=6, hidden=256, heads=8, kv_heads=4, head_dim=32, intermediate=512, vocab_size=384, max_context_tokens=4096
)
GLM = {
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "vocab_size": 300,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 320,
    "moe_intermediate_size": 96,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
}


def config_of(family: str) -> dict[str, Any]:
    fields = GLM if family == "glm4_moe" else family_config(family, SIZES, {})
    return {"model_type": family, **fields}


def weight_matrices(config: dict[str, Any]) -> int:
    """Elements of all weight matrices of transformers' model."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    named = model.named_parameters()
    return sum(weight.numel() for name, weight in named if weight.dim() > 1 and not name.endswith("bias"))


def test_every_family_that_can_be_served_can_be_simulated() -> None:
    assert set(LIVE_FAMILIES) <= set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_transformers(family: str) -> None:
    config = config_of(family)
    assert shape_from_config(config, "tiny", "test").total_params == weight_matrices(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_that_transformers_wrote_reads_the_same(family: str, tmp_path: Path) -> None:
    config = config_of(family)
    AutoConfig.for_model(**config).save_pretrained(tmp_path)
    written = find_model(str(tmp_path)).shape
    plain = shape_from_config(config, written.name, written.source)
    assert written == plain


@pytest.mark.parametrize(
    ("overrides", "layers_with_experts"),
    [
        ({"mlp_only_layers": [0, 3]}, 4),
        ({"decoder_sparse_step": 2}, 3),
        ({"mlp_only_layers": [1], "decoder_sparse_step": 2}, 2),
    ],
)
def test_qwen3_moe_with_dense_layers(overrides: dict[str, Any], layers_with_experts: int) -> None:
    config = {**config_of("qwen3_moe"), **overrides}
    shape = shape_from_config(config, "tiny", "test")
    assert shape.ffn.expert_layers == layers_with_experts
    assert shape.total_params == weight_matrices(config)


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    model = MODELS[name]
    shape = model.shape
    assert shape.total_params == pytest.approx(model.published_params, rel=0.01)
    active = shape.active_params
    if name == "DS-27B":  # published without output head, before it had an indexer
        assert shape.indexer is not None
        active -= shape.head_params + shape.num_layers * shape.indexer.projection_params(shape.hidden, shape.hidden)
    assert active == pytest.approx(model.published_active_params, rel=0.03)


def test_the_mixture_of_gpt_oss_is_counted_as_its_card_counts() -> None:
    """With the output head, without the embedding: 5.13B active of 116.83B."""
    assert MODELS["GPT-OSS-120B"].shape.active_params == pytest.approx(5.13e9, rel=0.002)


def by_hand(name: str) -> ModelShape:
    return find_model(name).shape


def test_shapes_by_hand() -> None:
    assert by_hand("qwen2.5-32b").attention.projection_params(5120) == 5120 * (40 + 8 + 8) * 128 + 40 * 128 * 5120
    gpt_oss = by_hand("GPT-OSS-120B")
    assert (gpt_oss.full_layers, gpt_oss.windowed_layers, gpt_oss.window_tokens) == (18, 18, 128)
    v3 = by_hand("DeepSeek-V3")
    query = 7168 * 1536 + 1536 * 128 * 192
    latent = 7168 * 576 + 512 * 128 * 256
    assert v3.attention.projection_params(7168) == query + latent + 128 * 128 * 7168
    assert by_hand("DeepSeek-V3.2").attention_params - v3.attention_params == 61 * (1536 * 64 * 128 + 7168 * (128 + 64))


def test_windows_of_each_family() -> None:
    mistral = shape_from_config(config_of("mistral"), "m", "test")
    assert (mistral.windowed_layers, mistral.full_layers) == (6, 0)
    none = shape_from_config({**config_of("mistral"), "sliding_window": None}, "m", "test")
    assert (none.windowed_layers, none.window_tokens) == (0, 0)
    windowed = {"use_sliding_window": True, "max_window_layers": 4, "sliding_window": 100}
    qwen = shape_from_config({**config_of("qwen2"), **windowed}, "q", "test")
    assert (qwen.windowed_layers, qwen.window_tokens) == (2, 100)
    gpt_oss = config_of("gpt_oss")
    assert shape_from_config(gpt_oss, "g", "t") == shape_from_config({**gpt_oss, "layer_types": None}, "g", "t")


@pytest.mark.parametrize(
    ("family", "overrides", "message"),
    [
        ("llama", {"model_type": "gpt2"}, "model_type = 'gpt2': not a known family"),
        ("llama", {"model_type": None}, "model_type = None"),
        ("llama", {"hidden_size": None}, "hidden_size is missing"),
        ("qwen3", {"head_dim": None}, "head_dim is missing"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers = 0: must be at least 1"),
        ("llama", {"num_hidden_layers": "61"}, "num_hidden_layers = '61': must be a whole number"),
        ("llama", {"vocab_size": True}, "vocab_size = True: must be a whole number"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads = 3: must divide"),
        ("qwen2", {"num_attention_heads": 12}, "hidden_size = 256: must be a multiple of num_attention_heads"),
        ("llama", {"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no': must be true or false"),
        ("gpt_oss", {"layer_types": ["full_attention"]}, "must have an entry for each of the 6 layers, not 1"),
        ("gpt_oss", {"layer_types": ["linear_attention"] * 6}, "layer_types has 'linear_attention'"),
        ("gpt_oss", {"layer_types": 6}, "layer_types = 6: must be a list"),
        ("gpt_oss", {"sliding_window": None}, "sliding_window is missing"),
        ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok = 9: must be at most the number of experts"),
        ("deepseek_v32", {"index_topk": None}, "index_topk is missing"),
        ("deepseek_v3", {"first_k_dense_replace": None}, "first_k_dense_replace is missing"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, "quant_method = 'awq': must be one of fp8, mxfp4"),
        ("llama", {"quantization_config": {"quant_method": ["fp8"]}}, "quant_method = ['fp8']: must be one of fp8"),
        ("llama", {"quantization_config": ["fp8"]}, "quant_method = ['fp8']: must be one of fp8"),
        ("llama", {"torch_dtype": ["bfloat16"]}, "must be one of bfloat16"),
        ("llama", {"num_hidden_layers": 10**12}, "num_hidden_layers = 1000000000000: must be at most 10000"),
        ("llama", {"torch_dtype": "int8"}, "torch_dtype = 'int8': must be one of bfloat16"),
    ],
)
def test_what_is_wrong_with_a_config_is_said(
    family: str, overrides: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config_of(family), **overrides}), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        find_model(str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_file_that_is_no_config(content: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json"):
        find_model(str(path))


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'gpt-5': there is no file gpt-5, and the catalogue has DeepSeek-V3,"):
        find_model("gpt-5")

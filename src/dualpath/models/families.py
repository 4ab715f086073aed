"""Which model families can be served, and what each caches per token; everything else is refused with a reason.

A family is transformers' ``model_type``. Refused although transformers runs them: rotary types whose frequencies depend
on the length of the context (keys that are cached would no longer fit), and quantised checkpoints, unless they can be
dequantised while they are loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dualpath.core.errors import UnsupportedModelError
from dualpath.models.layout import GqaLayout, KvLayout, MlaLayout

GQA_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", "gpt_oss")
MLA_FAMILIES = ("deepseek_v2", "deepseek_v3", "deepseek_v32")
SUPPORTED_FAMILIES = GQA_FAMILIES + MLA_FAMILIES
SPARSE_FAMILIES = ("deepseek_v32",)  # their indexer sees one sequence at a time
SPARSE_SINCE = (5, 23)  # transformers; before, it caches expanded keys and values instead of latents
DEQUANTISED: dict[str, tuple[str, ...]] = {"fp8": SUPPORTED_FAMILIES, "mxfp4": ("gpt_oss",)}  # by transformers
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def check_model_dir(model_dir: Path) -> str:
    """The family of the model in ``model_dir``, judged by config.json alone, before transformers reads anything."""
    path = model_dir / "config.json"
    if not model_dir.is_dir():
        raise UnsupportedModelError(f"{model_dir} is not a directory")
    if not path.is_file():
        raise UnsupportedModelError(f"{model_dir} has no config.json: not a Hugging Face model directory")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(f"cannot read {path}: {one_line(error)}") from error
    if not isinstance(config, dict):
        raise UnsupportedModelError(f"{path} is not a JSON object")
    return _check_config(config)


def _check_config(config: dict[str, Any]) -> str:
    family = config.get("model_type")
    if not isinstance(family, str) or family not in SUPPORTED_FAMILIES:
        raise UnsupportedModelError(f"model_type {family!r} is not supported: one of {', '.join(SUPPORTED_FAMILIES)}")
    check_quantisation(config.get("quantization_config"), family)
    for rope in _rope_types(config.get("rope_parameters")) | _rope_types(config.get("rope_scaling")):
        if rope in LENGTH_DEPENDENT_ROPE:
            raise UnsupportedModelError(f"rope type {rope!r} changes with the context's length: KV cannot be reused")
    return family


def check_quantisation(quantised: Any, family: str) -> None:
    """Raises UnsupportedModelError for a checkpoint that transformers cannot turn into plain weights when it loads."""
    if not quantised:
        return
    method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
    is_blockwise = method != "fp8" or bool(isinstance(quantised, dict) and quantised.get("weight_block_size"))
    if family not in DEQUANTISED.get(str(method), ()) or not is_blockwise:
        kinds = "fp8 in blocks, as DeepSeek's are, and mxfp4, as GPT-OSS's are"
        raise UnsupportedModelError(
            f"{method} quantised checkpoints of {family} are not supported, only {kinds}: convert to bfloat16 first"
        )


def _rope_types(parameters: Any) -> set[str]:
    """Rope types in a (possibly nested, per layer type) rope_parameters or legacy rope_scaling entry."""
    if not isinstance(parameters, dict):
        return set()
    found = {str(parameters[key]) for key in ("rope_type", "type") if key in parameters}
    for value in parameters.values():
        found |= _rope_types(value)
    return found


def layout_of(config: Any, dtype: torch.dtype) -> KvLayout:
    """The KV row of a model with transformers config ``config``, computing in ``dtype``."""
    if config.model_type in MLA_FAMILIES:
        index_dim = config.index_head_dim if config.model_type in SPARSE_FAMILIES else 0
        return MlaLayout(dtype, config.kv_lora_rank, config.qk_rope_head_dim, index_dim)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return GqaLayout(dtype, config.num_key_value_heads, head_dim)


def one_line(error: BaseException, max_chars: int = 300) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."

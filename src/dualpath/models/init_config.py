"""Small configurations: one transformers config per supported family, with every feature of the family switched on.

The numbers are chosen so that short tests meet what makes a family special: windows and sparse attention are smaller
than a few hundred tokens of context, K and V heads differ in size where the family allows it, sinks and biases exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dualpath.core.errors import ConfigError
from dualpath.models.init_tokenizer import EOS_ID, PAD_ID, VOCAB_SIZE

SLIDING_WINDOW = 128  # tokens; mistral in every layer, gpt_oss in every other layer
INDEX_TOPK = 64  # tokens that deepseek_v32's sparse attention selects
INDEX_HEADS = 32  # with fewer heads random indexers produce exact ties (all ReLUs closed), and ties flip tokens


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """The common dimensions of a model; families derive the rest from them."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab_size: int
    max_context_tokens: int

    def check(self) -> None:
        """Raise ConfigError for dimensions that no family can have."""
        for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "max_context_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 4:
            raise ConfigError(f"head_dim must be a multiple of 4 (rotary halves), not {self.head_dim}")
        if self.vocab_size < VOCAB_SIZE:
            raise ConfigError(f"vocab_size must be at least {VOCAB_SIZE} (bytes and specials), not {self.vocab_size}")


def _base(sizes: ModelSizes) -> dict[str, Any]:
    return {
        "num_hidden_layers": sizes.layers,
        "hidden_size": sizes.hidden,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.intermediate,
        "vocab_size": sizes.vocab_size,
        "max_position_embeddings": sizes.max_context_tokens,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
    }


def _gqa(sizes: ModelSizes) -> dict[str, Any]:
    return {**_base(sizes), "num_key_value_heads": sizes.kv_heads, "head_dim": sizes.head_dim}


def _qwen2(sizes: ModelSizes) -> dict[str, Any]:
    if sizes.heads * sizes.head_dim != sizes.hidden:
        raise ConfigError(f"qwen2 has no head_dim of its own: heads x head_dim must be hidden ({sizes.hidden})")
    return {**_base(sizes), "num_key_value_heads": sizes.kv_heads}


def _mistral(sizes: ModelSizes) -> dict[str, Any]:
    return {**_gqa(sizes), "sliding_window": SLIDING_WINDOW}


def _qwen3_moe(sizes: ModelSizes) -> dict[str, Any]:
    moe = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": max(8, sizes.intermediate // 4)}
    return {**_gqa(sizes), **moe, "norm_topk_prob": True}


def _mixtral(sizes: ModelSizes) -> dict[str, Any]:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return {**_gqa(sizes), **experts, "intermediate_size": max(8, sizes.intermediate // 2), "sliding_window": None}


def _gpt_oss(sizes: ModelSizes) -> dict[str, Any]:
    original = min(4096, sizes.max_context_tokens)
    rope = {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": sizes.max_context_tokens / original,
        "original_max_position_embeddings": original,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
    }
    return {
        **_gqa(sizes),
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": max(8, sizes.intermediate // 2),
        "sliding_window": SLIDING_WINDOW,
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(sizes.layers)],
        "rope_parameters": rope,
    }


def _mla(sizes: ModelSizes) -> dict[str, Any]:
    """Latent attention: the cached row is the latent and one rotary key, so kv_heads does not apply."""
    return {
        **_base(sizes),
        "num_key_value_heads": sizes.heads,
        "q_lora_rank": max(16, sizes.hidden // 2),
        "kv_lora_rank": max(16, sizes.hidden // 2),
        "qk_nope_head_dim": sizes.head_dim,
        "qk_rope_head_dim": max(4, sizes.head_dim // 2),
        "v_head_dim": sizes.head_dim,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": max(8, sizes.intermediate // 4),
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
    }


def _deepseek_v2(sizes: ModelSizes) -> dict[str, Any]:
    return {**_mla(sizes), "q_lora_rank": None, "topk_method": "greedy"}  # no low-rank query, as in V2-Lite


def _deepseek_v3(sizes: ModelSizes) -> dict[str, Any]:
    return {**_mla(sizes), "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.0}


def _deepseek_v32(sizes: ModelSizes) -> dict[str, Any]:
    rope = max(4, sizes.head_dim // 2)  # the indexer rotates the first rope dimensions of its heads
    indexer = {"index_topk": INDEX_TOPK, "index_n_heads": INDEX_HEADS, "index_head_dim": max(32, 2 * rope)}
    return {**_deepseek_v3(sizes), **indexer}


_CONFIGS: dict[str, Callable[[ModelSizes], dict[str, Any]]] = {
    "llama": _gqa,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _gqa,
    "qwen3_moe": _qwen3_moe,
    "mixtral": _mixtral,
    "gpt_oss": _gpt_oss,
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
    "deepseek_v32": _deepseek_v32,
}

FAMILIES: tuple[str, ...] = tuple(_CONFIGS)


def family_config(family: str, sizes: ModelSizes, overrides: dict[str, Any]) -> dict[str, Any]:
    """Config fields of ``family`` at ``sizes``; ``overrides`` are transformers' own field names and win."""
    if family not in _CONFIGS:
        raise ConfigError(f"unknown model family {family!r}: one of {', '.join(FAMILIES)}")
    sizes.check()
    return {**_CONFIGS[family](sizes), **overrides}

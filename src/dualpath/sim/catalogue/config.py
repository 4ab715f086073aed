"""From a Hugging Face configuration to a model's shape; the families that ``dualpath.models`` serves, and GLM-4 MoE.

Field names and their meaning are those of transformers' configuration classes; both spellings are read where versions
4 and 5 of transformers differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dualpath.core.errors import ConfigError
from dualpath.sim.catalogue.attention import Attention, GroupedQuery, Indexer, Latent
from dualpath.sim.catalogue.fields import Fields
from dualpath.sim.catalogue.shape import FeedForward, ModelShape

DENSE_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ALL_EXPERT_FAMILIES = ("mixtral", "gpt_oss")  # every layer has experts; intermediate_size is theirs
LATENT_FAMILIES = ("deepseek_v2", "deepseek_v3", "deepseek_v32")
FIRST_DENSE_FAMILIES = (*LATENT_FAMILIES, "glm4_moe")  # the first layers are dense
FAMILIES = (*DENSE_FAMILIES, "qwen3_moe", *ALL_EXPERT_FAMILIES, *FIRST_DENSE_FAMILIES)

OWN_HEAD_DIM = ("qwen3", "qwen3_moe", "gpt_oss", "glm4_moe")  # heads x head_dim is not hidden_size: no guess
MAX_LAYERS = 10_000  # each is looked at
HALF_DTYPES = {"bfloat16": "bf16", "float16": "fp16"}
FULL_ATTENTION = ("full_attention", "indexed_attention")
QUANTISED = {"fp8": ("fp8", "fp8"), "mxfp4": ("bf16", "mxfp4")}  # quant_method -> (linear, expert) dtype


def shape_from_config(config: Mapping[str, Any], name: str, source: str) -> ModelShape:
    """Raises ConfigError for an unknown family and for a field that is missing or makes no sense."""
    fields = Fields(name, config)
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(f"{name}: model_type = {family!r}: not a known family, one of {', '.join(FAMILIES)}")
    num_layers = fields.count("num_hidden_layers")
    if num_layers > MAX_LAYERS:
        fields.refuse("num_hidden_layers", f"must be at most {MAX_LAYERS}")
    windowed, window = _windows(fields, family, num_layers)
    linear_dtype, expert_dtype = _weight_dtypes(fields)
    return ModelShape(
        name=name,
        source=source,
        hidden=fields.count("hidden_size"),
        vocab=fields.count("vocab_size"),
        num_layers=num_layers,
        attention=_latent(fields, family) if family in LATENT_FAMILIES else _grouped_query(fields, family),
        ffn=_feed_forward(fields, family, num_layers),
        windowed_layers=windowed,
        window_tokens=window,
        is_tied=fields.flag("tie_word_embeddings", default=False),
        linear_dtype=linear_dtype,
        expert_dtype=expert_dtype,
    )


def _grouped_query(fields: Fields, family: str) -> Attention:
    heads = fields.count("num_attention_heads")
    kv_heads = fields.count("num_key_value_heads", default=heads if family == "llama" else None)
    if heads % kv_heads:
        fields.refuse("num_key_value_heads", f"must divide num_attention_heads ({heads})")
    if fields.has("head_dim") or family in OWN_HEAD_DIM:
        return GroupedQuery(heads, kv_heads, fields.count("head_dim"))
    hidden = fields.count("hidden_size")
    if hidden % heads:
        fields.refuse("hidden_size", f"must be a multiple of num_attention_heads ({heads}) where head_dim is not given")
    return GroupedQuery(heads, kv_heads, hidden // heads)


def _latent(fields: Fields, family: str) -> Attention:
    indexer = None
    if family == "deepseek_v32":
        heads, head_dim = fields.count("index_n_heads"), fields.count("index_head_dim")
        indexer = Indexer(heads, head_dim, fields.count("index_topk"))
    return Latent(
        heads=fields.count("num_attention_heads"),
        latent_dim=fields.count("kv_lora_rank"),
        rope_dim=fields.count("qk_rope_head_dim"),
        nope_dim=fields.count("qk_nope_head_dim"),
        value_dim=fields.count("v_head_dim"),
        query_rank=fields.count("q_lora_rank") if fields.has("q_lora_rank") else None,
        indexer=indexer,
    )


def _feed_forward(fields: Fields, family: str, num_layers: int) -> FeedForward:
    width = fields.count("intermediate_size")
    if family in DENSE_FAMILIES:
        return FeedForward(num_layers, width)
    experts = fields.count("n_routed_experts", "num_local_experts", "num_experts")
    per_token = fields.count("num_experts_per_tok")
    if per_token > experts:
        fields.refuse("num_experts_per_tok", f"must be at most the number of experts ({experts})")
    if family in ALL_EXPERT_FAMILIES:
        return FeedForward(0, width, num_layers, width, experts, per_token)
    expert_layers = _expert_layers(fields, family, num_layers)
    expert_width = fields.count("moe_intermediate_size")
    shared_width = fields.count("n_shared_experts", default=0, minimum=0) * expert_width
    dense_layers = num_layers - expert_layers
    return FeedForward(dense_layers, width, expert_layers, expert_width, experts, per_token, shared_width)


def _expert_layers(fields: Fields, family: str, num_layers: int) -> int:
    """How many layers have experts: all but the first few, or all but those listed."""
    if family in FIRST_DENSE_FAMILIES:
        first = fields.count("first_k_dense_replace", minimum=0)
        step = fields.count("moe_layer_freq", default=1)
        return sum(layer % step == 0 for layer in range(first, num_layers))
    dense = fields.sequence("mlp_only_layers") or []
    step = fields.count("decoder_sparse_step", default=1)
    return sum(layer not in dense and (layer + 1) % step == 0 for layer in range(num_layers))


def _windows(fields: Fields, family: str, num_layers: int) -> tuple[int, int]:
    """(layers with a sliding window, its tokens)."""
    kinds = fields.sequence("layer_types")
    if kinds is not None:
        if len(kinds) != num_layers:
            fields.refuse("layer_types", f"must have an entry for each of the {num_layers} layers, not {len(kinds)}")
        unknown = sorted({str(kind) for kind in kinds} - {"sliding_attention", *FULL_ATTENTION})
        if unknown:
            raise ConfigError(
                f"{fields.where}: layer_types has {unknown[0]!r}: only full and sliding attention is known"
            )
        windowed = kinds.count("sliding_attention")
    elif family == "gpt_oss":
        windowed = (num_layers + 1) // 2  # every other layer, the first one has a window
    elif family in ("mistral", "mixtral"):
        windowed = num_layers if fields.has("sliding_window") else 0
    elif fields.flag("use_sliding_window", default=False):  # Qwen
        windowed = max(0, num_layers - fields.count("max_window_layers", minimum=0))
    else:
        windowed = 0
    return (windowed, fields.count("sliding_window")) if windowed else (0, 0)


def _weight_dtypes(fields: Fields) -> tuple[str, str]:
    """(attention and dense FFN, routed experts) as the checkpoint stores them; bf16 where it does not say."""
    quantisation = fields.data.get("quantization_config")
    if quantisation:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
        if not isinstance(method, str) or method not in QUANTISED:
            known = ", ".join(QUANTISED)
            raise ConfigError(f"{fields.where}: quantization_config.quant_method = {method!r}: must be one of {known}")
        return QUANTISED[method]
    stored = fields.data.get("dtype") or fields.data.get("torch_dtype")
    if stored is None or (isinstance(stored, str) and stored in (*HALF_DTYPES, "float32")):
        half = HALF_DTYPES.get(str(stored), "bf16")  # nobody serves fp32
        return half, half
    name = "dtype" if fields.data.get("dtype") else "torch_dtype"
    return fields.refuse(name, f"must be one of {', '.join(HALF_DTYPES)}, float32")

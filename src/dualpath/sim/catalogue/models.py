"""Models by name: their published configurations, parameter counts, and the dtype their KV is usually kept in.

Configurations hold the fields that matter here, under Hugging Face's names and as the model's repository states them,
so that a catalogue entry and a user's config.json go the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dualpath.sim.catalogue.config import shape_from_config
from dualpath.sim.catalogue.shape import ModelShape


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """``kv_dtype``: of the paper's Table 1 (arXiv 2602.21548) for the models in it, else the checkpoint's."""

    name: str
    config: Mapping[str, Any]
    source: str
    kv_dtype: str
    published_params: float
    published_active_params: float  # as the source counts them: with or without embedding and output head
    published_source: str

    @property
    def shape(self) -> ModelShape:
        return shape_from_config(self.config, self.name, self.source)


_DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "vocab_size": 129280,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "quantization_config": {"quant_method": "fp8"},
}
_DEEPSEEK_V32 = {
    **_DEEPSEEK_V3,
    "model_type": "deepseek_v32",
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 2048,
}
# The paper gives layers, widths, experts and indexer. Latent, rotary and head dimensions and the vocabulary are not
# given: DeepSeek-V3's are taken. With them 3.8B parameters outside embedding, output head and indexer are active, as
# published for DeepSeek's 27B model of the same layers, width and experts (arXiv 2601.07372).
_DS_27B = {
    **_DEEPSEEK_V32,
    "hidden_size": 2560,
    "num_hidden_layers": 30,
    "first_k_dense_replace": 1,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 72,
    "num_experts_per_tok": 6,
    "n_shared_experts": 2,
    "num_attention_heads": 32,
    "q_lora_rank": None,
    "index_n_heads": 32,
    "index_head_dim": 64,
    "index_topk": 1024,
}
_QWEN25_32B = {
    "model_type": "qwen2",
    "hidden_size": 5120,
    "vocab_size": 152064,
    "num_hidden_layers": 64,
    "intermediate_size": 27648,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
}
_QWEN3_235B = {
    "model_type": "qwen3_moe",
    "hidden_size": 4096,
    "vocab_size": 151936,
    "num_hidden_layers": 94,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
}
_GPT_OSS_120B = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "vocab_size": 201088,
    "num_hidden_layers": 36,
    "intermediate_size": 2880,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "sliding_window": 128,
    "quantization_config": {"quant_method": "mxfp4"},
}
_LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "vocab_size": 128256,
    "num_hidden_layers": 80,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
_GLM_46 = {
    "model_type": "glm4_moe",
    "hidden_size": 5120,
    "vocab_size": 151552,
    "num_hidden_layers": 92,
    "first_k_dense_replace": 3,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
}

_ALL = (
    CatalogueModel(
        name="DeepSeek-V3",
        config=_DEEPSEEK_V3,
        source="config.json of deepseek-ai/DeepSeek-V3",
        kv_dtype="fp8",
        published_params=671e9,
        published_active_params=37e9,
        published_source="DeepSeek-V3 technical report, arXiv 2412.19437",
    ),
    CatalogueModel(
        name="DeepSeek-V3.2",
        config=_DEEPSEEK_V32,
        source="inference/config_671B_v3.2.json of deepseek-ai/DeepSeek-V3.2-Exp",
        kv_dtype="fp8",
        published_params=671e9,
        published_active_params=37e9,
        published_source="as DeepSeek-V3, of which it is a continuation (the indexer adds 0.9B to both)",
    ),
    CatalogueModel(
        name="DS-27B",
        config=_DS_27B,
        source="arXiv 2602.21548; latent and head dimensions and vocabulary assumed as DeepSeek-V3's",
        kv_dtype="fp8",
        published_params=27e9,
        published_active_params=3.8e9,
        published_source="arXiv 2602.21548 (27B); active: the 27B of arXiv 2601.07372, without output head and indexer",
    ),
    CatalogueModel(
        name="Qwen2.5-32B",
        config=_QWEN25_32B,
        source="config.json of Qwen/Qwen2.5-32B",
        kv_dtype="fp16",
        published_params=32.5e9,
        published_active_params=32.5e9,
        published_source="model card of Qwen/Qwen2.5-32B (31.0B of it outside embedding and output head)",
    ),
    CatalogueModel(
        name="Qwen3-235B-A22B",
        config=_QWEN3_235B,
        source="config.json of Qwen/Qwen3-235B-A22B",
        kv_dtype="fp8",
        published_params=235e9,
        published_active_params=22e9,
        published_source="Qwen3 technical report, arXiv 2505.09388",
    ),
    CatalogueModel(
        name="GPT-OSS-120B",
        config=_GPT_OSS_120B,
        source="config.json of openai/gpt-oss-120b",
        kv_dtype="fp8",
        published_params=116.83e9,
        published_active_params=5.13e9,
        published_source="gpt-oss model card, arXiv 2508.10925, table 1 (active: with output head, without embedding)",
    ),
    CatalogueModel(
        name="Llama-3.3-70B",
        config=_LLAMA_70B,
        source="config.json of meta-llama/Llama-3.3-70B-Instruct",
        kv_dtype="bf16",
        published_params=70.6e9,
        published_active_params=70.6e9,
        published_source="model card of meta-llama/Llama-3.3-70B-Instruct (70B; 70.6B in its safetensors index)",
    ),
    CatalogueModel(
        name="GLM-4.6",
        config=_GLM_46,
        source="config.json of zai-org/GLM-4.6",
        kv_dtype="bf16",
        published_params=355e9,
        published_active_params=32e9,
        published_source="GLM-4.5 report, arXiv 2508.06471 (GLM-4.6 has its shape)",
    ),
)
MODELS = {model.name: model for model in _ALL}

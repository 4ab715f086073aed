"""From data sheets to the simulator's costs: a model on a GPU, at stated fractions of the GPU's peaks.

Efficiencies are physical quantities that a profile or a published kernel gives; none is hidden. Data sheets cannot know
launch overheads and collectives: ``base_s`` is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from dualpath.core.errors import ConfigError
from dualpath.scheduler.policy.cost import DecodeCost
from dualpath.sim.catalogue.convention import PHYSICAL, Convention, LatentForm
from dualpath.sim.catalogue.flops import pair_flops
from dualpath.sim.catalogue.gpus import Gpu
from dualpath.sim.catalogue.kv import index_row_bytes, kv_bytes_per_token, kv_row_bytes
from dualpath.sim.catalogue.shape import ModelShape
from dualpath.sim.catalogue.weights import weight_bytes
from dualpath.sim.cost import ModelCost, PrefillCost

PAIR_DTYPE = "bf16"  # attention is computed in BF16 also over FP8 KV (FlashMLA README)
INDEX_DTYPE = "fp8"  # the indexer's scores (DeepSeek-V3.2-Exp, inference/model.py); bf16 where a GPU lacks it


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Achieved fraction of peak: FLOPS for the first three, HBM bandwidth for the last."""

    linear: float
    pairs: float
    index: float
    hbm: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 < value <= 1:
                raise ConfigError(f"efficiency {field.name} must be more than 0 and at most 1, not {value}")


# Single kernels at their best shapes on an H800: an upper bound that no serving engine reaches. DeepGEMM's README: 1550
# TFLOPS in FP8; FlashMLA's: 640 TFLOPS sparse prefill, 3000 GB/s decode. No figure is published for the indexer's
# scores: taken as the GEMM's.
BEST_KERNELS = Efficiency(linear=1550 / 1979, pairs=640 / 989.5, index=1550 / 1979, hbm=3000 / 3350)


def prefill_cost(
    model: ModelShape,
    gpu: Gpu,
    efficiency: Efficiency = BEST_KERNELS,
    *,
    base_s: float = 0.0,
    convention: Convention = PHYSICAL,
) -> PrefillCost:
    """Seconds of a forward, as ``flops.prefill_flops`` counts its work, each part at its own rate.

    Exact but for two things: a windowed layer's pairs are taken as a full window for each new token, which they are
    once the history is as long as the window; and the logits of the last token only are left out (once per request).
    Raises ConfigError for expanded latent attention, whose work per cached token a ``PrefillCost`` has no term for.
    """
    if convention.latent_form is LatentForm.EXPANDED:
        raise ConfigError("latent_form = 'expanded': has work per cached token, which the simulator does not model")
    linear_flops_per_s = gpu.flops_per_s(gpu.compute_dtype(model.linear_dtype)) * efficiency.linear
    expert_flops_per_s = gpu.flops_per_s(gpu.compute_dtype(model.expert_dtype)) * efficiency.linear
    pair_s = pair_flops(model, convention) / (gpu.flops_per_s(PAIR_DTYPE) * efficiency.pairs)
    own_params = model.attention_params + (model.head_params if convention.every_logit else 0)
    dense = model.ffn.dense_params(model.hidden)
    routed = model.ffn.active_params(model.hidden) - dense
    capped_at, full, windowed = _pair_layers(model)
    return PrefillCost(
        base_s=base_s,
        token_s=2 * own_params / linear_flops_per_s + windowed * model.window_tokens * pair_s,
        pair_s=full * pair_s,
        index_pair_s=_index_pair_s(model, gpu, efficiency),
        top_k=capped_at,
        group_token_s=2 * dense / linear_flops_per_s + 2 * routed / expert_flops_per_s,
    )


def decode_cost(
    model: ModelShape,
    gpu: Gpu,
    efficiency: Efficiency = BEST_KERNELS,
    *,
    kv_dtype: str,
    ffn_gpus: int,
    base_s: float = 0.0,
    convention: Convention = PHYSICAL,
) -> DecodeCost:
    """Seconds of a decode step of one GPU: weights and KV from HBM, and the work, one after the other.

    An upper bound where memory and tensor cores overlap, and where a small batch does not choose every expert. A sparse
    attention reads its index keys of the whole context and ``top_k`` rows a request; contexts below top-k read less.
    """
    weights, bandwidth = weight_bytes(model), gpu.hbm_bytes_per_s * efficiency.hbm
    linear_flops_per_s = gpu.flops_per_s(gpu.compute_dtype(model.linear_dtype)) * efficiency.linear
    read_bytes = weights.attention + weights.head + (weights.ffn + weights.experts) / ffn_gpus
    row_bytes = kv_row_bytes(model, kv_dtype, index_keys=False)
    row_s = row_bytes / bandwidth + pair_flops(model, convention) / (gpu.flops_per_s(PAIR_DTYPE) * efficiency.pairs)
    capped_at, full, windowed = _pair_layers(model)
    capped_rows = windowed * model.window_tokens + (0 if capped_at is None else full * capped_at)
    index_s = model.num_layers * index_row_bytes(model) / bandwidth + _index_pair_s(model, gpu, efficiency)
    return DecodeCost(
        base_s=base_s + read_bytes / bandwidth,
        per_request_s=2 * model.active_params / linear_flops_per_s + capped_rows * row_s,
        per_context_token_s=index_s + (full * row_s if capped_at is None else 0.0),
    )


def model_cost(
    model: ModelShape,
    gpu: Gpu,
    efficiency: Efficiency = BEST_KERNELS,
    *,
    kv_dtype: str,
    ffn_gpus: int,
    prefill_base_s: float = 0.0,
    decode_base_s: float = 0.0,
    convention: Convention = PHYSICAL,
) -> ModelCost:
    """Everything the simulator needs of a model on a GPU."""
    decode = decode_cost(
        model, gpu, efficiency, kv_dtype=kv_dtype, ffn_gpus=ffn_gpus, base_s=decode_base_s, convention=convention
    )
    return ModelCost(
        prefill=prefill_cost(model, gpu, efficiency, base_s=prefill_base_s, convention=convention),
        decode=decode,
        kv_bytes_per_token=kv_bytes_per_token(model, kv_dtype, convention),
        num_layers=model.num_layers,
    )


def _pair_layers(model: ModelShape) -> tuple[int | None, int, int]:
    """(cap on a query's keys, layers under it, layers with a window counted apart).

    A model all of whose layers have the window has that as its cap.
    """
    if model.windowed_layers == model.num_layers:
        return model.window_tokens, model.num_layers, 0
    return (None if model.indexer is None else model.indexer.top_k), model.full_layers, model.windowed_layers


def _index_pair_s(model: ModelShape, gpu: Gpu, efficiency: Efficiency) -> float:
    if model.indexer is None:
        return 0.0
    flops_per_s = gpu.flops_per_s(gpu.compute_dtype(INDEX_DTYPE)) * efficiency.index
    return model.num_layers * model.indexer.pair_flops / flops_per_s

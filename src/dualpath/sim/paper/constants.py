"""One value for each constant of a model, in all experiments: its meaning, its source, whether it was fitted.

What is left out here has its default in ``sim.spec``. "Fitted" means chosen so that published numbers come out; which
ones is named. Everything else follows from published shapes, data sheets, or the paper's own description.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dualpath.sim.spec import ClusterSpec, ModelSpec, SchedulerSpec, SimSpec

PAPER = "arXiv 2602.21548"
NUM_HEADS_660B, NUM_LAYERS_660B = 128, 61  # DeepSeek-V3.2's config.json
NUM_HEADS_27B, NUM_LAYERS_27B = 32, 30  # the paper's appendix
LATENT_DIMS = 576 + 512  # absorbed latent attention: scores over 512 + 64 rotary, values over 512; per head and pair
PEFF_660B, MEFF_660B = 5.4e14, 3.0e14  # achieved FLOP/s of a GPU: attention, experts
PEFF_27B, MEFF_27B = 3.5e14, 2.0e14
ATTENTION_FLOPS_660B = 24.5e9  # per new token: projections of all layers, shape of DeepSeek-V3.2
EXPERT_FLOPS_660B = 50.4e9  # per new token: routed and shared experts and the dense layers
# 2 FLOP a weight: q, kv_a, kv_b, o, indexer's q of 32 heads of 192 and 128; 8 experts of 1536 a token, one dense layer.
ATTENTION_FLOPS_27B = 2 * 30 * (2560 * 32 * 192 + 2560 * 576 + 512 * 32 * 256 + 32 * 128 * 2560 + 2560 * 32 * 64)
EXPERT_FLOPS_27B = 2 * (29 * 8 * 3 * 2560 * 1536 + 3 * 2560 * 12288)
GQA_FLOPS_32B = 4 * 40 * 128 * 64  # per pair: 40 heads of 128, 64 layers, scores and values
DENSE_FLOPS_32B = 2 * 31.99e9  # per new token, all weights but the embedding


@dataclass(frozen=True, slots=True)
class Constant:
    """``key`` is a table and a setting of ``sim.spec``."""

    key: str
    value: float | str
    unit: str
    meaning: str
    source: str
    fitted: bool = False


_KERNEL_NOTE = "FLOPs of the shape over an achieved rate per GPU"
_STAGING = Constant("cluster.staging_bytes", 80_000_000_000, "bytes", "staging DRAM of a node", f"{PAPER}, section 7.1")
_DECODE_GROUP = Constant(
    "cluster.decode_group_engines",
    8,
    "engines",
    "decode engines whose steps wait for each other",
    "a node: EP, assumed",
)
_MEMORY = Constant(
    "scheduler.memory",
    "on_demand",
    "",
    "memory is taken when KV comes",
    f"{PAPER}, sections 4.1, 6",
)


def _prefill(
    layers: int,
    base_s: float,
    attention: float,
    pair: float,
    index: float,
    top_k: int,
    experts: float,
    rates: tuple[float, float],
    fit: str,
) -> tuple[Constant, ...]:
    """Costs of prefill of a model with sparse latent attention; FLOPs and the two achieved rates."""
    peff, meff = rates
    at = f"{_KERNEL_NOTE}: {peff:.1e} FLOP/s"
    return (
        Constant("model.num_layers", layers, "", "layers", "model shape"),
        Constant("model.prefill_base_s", base_s, "s", "launches, collectives of a forward of the group", fit, True),
        Constant("model.prefill_token_s", attention / peff, "s/token", "attention's projections", at + fit, True),
        Constant("model.prefill_pair_s", pair / peff, "s/pair", "attention to at most top_k keys", at + fit, True),
        Constant("model.prefill_index_pair_s", index / peff, "s/pair", "the indexer, over all keys", at + fit, True),
        Constant("model.top_k", top_k, "tokens", "keys a query attends to", "model shape"),
        Constant("model.prefill_group_token_s", experts / meff, "GPU-s/token", "experts, spread over the group",
                 f"{_KERNEL_NOTE}: {meff:.1e} FLOP/s{fit}", True),
    )  # fmt: skip


_FIT_660B = "; fitted to TTFT of 1.74 s at 0.4 APS, and to offline gains more than to JCT itself"
_FIT_27B = "; fitted to the three equal JCTs of the P/D figure"

_660B = (
    Constant("model.kv_bytes_per_token", (656 + 132) * 61, "bytes", "FP8 latent, scales, rotary part, indexer keys",
             "DeepSeek-V3.2's FlashMLA cache layout"),
    *_prefill(NUM_LAYERS_660B, 0.35, ATTENTION_FLOPS_660B, 2 * NUM_HEADS_660B * LATENT_DIMS * NUM_LAYERS_660B,
              2 * 64 * 128 * NUM_LAYERS_660B, 2048, EXPERT_FLOPS_660B, (PEFF_660B, MEFF_660B), _FIT_660B),
    Constant("model.decode_base_s", 0.020, "s", "decode step with few requests", "fitted to TPOT at 0.4 APS", True),
    Constant("model.decode_per_request_s", 0.0017, "s", "decode step, per request of the largest batch of the group",
             "fitted to TPOT 39 ms at 0.4 APS; 8 times what reading KV from HBM takes, so it stands for more", True),
    Constant("cluster.prefill_kv_bytes", 12_000_000_000, "bytes", "HBM of a prefill GPU for KV",
             "fitted to the gain of layerwise prefill, -17 %; left of 72 GB by experts (41), other weights (18)",
             True),
    Constant("cluster.decode_kv_bytes", 60_000_000_000, "bytes", "HBM of a decode GPU for KV", "assumed: wide EP"),
    Constant("scheduler.admission_s", 0.35, "s", "client to scheduler's queue: tokenising, hit lookup",
             "fitted to TTFT at 0.4 APS", True),
    Constant("scheduler.handover_s", 0.14, "s", "prefill to decode, beside transfers", "fitted to TTST 0.228 s", True),
    _STAGING, _DECODE_GROUP, _MEMORY,
)  # fmt: skip

_27B = (
    Constant("model.kv_bytes_per_token", 30 * (656 + 68), "bytes", "FP8 latent 512 + rotary 64, indexer keys of 64",
             "the paper's shape; latent sizes as DeepSeek-V3's, assumed"),
    *_prefill(NUM_LAYERS_27B, 0.08, ATTENTION_FLOPS_27B, 2 * NUM_HEADS_27B * LATENT_DIMS * NUM_LAYERS_27B,
              2 * 32 * 64 * NUM_LAYERS_27B, 1024, EXPERT_FLOPS_27B, (PEFF_27B, MEFF_27B), _FIT_27B),
    Constant("model.decode_base_s", 0.012, "s", "decode step with an almost empty batch", "assumed"),
    Constant("model.decode_per_request_s", 0.00015, "s", "decode step, per request of the largest batch",
             "fitted: more breaks DualPath 2P1D = DualPath 1P2D", True),
    Constant("cluster.prefill_kv_bytes", 9_000_000_000, "bytes", "HBM of a prefill GPU for KV", "assumed"),
    Constant("cluster.decode_kv_bytes", 65_000_000_000, "bytes", "HBM of a decode GPU for KV",
             "fitted: 80 GB less 27 GB of FP8 weights, raised from 50 until Basic 2P1D is not short of it", True),
    Constant("scheduler.admission_s", 0.1, "s", "client to scheduler's queue", "assumed"),
    Constant("scheduler.handover_s", 0.02, "s", "from prefill to decode beside the transfers", "assumed"),
    _STAGING, _DECODE_GROUP, _MEMORY,
)  # fmt: skip

_32B = (
    Constant("model.kv_bytes_per_token", 64 * 2 * 8 * 128 * 2, "bytes", "FP16 K and V, 8 heads of 128, 64 layers",
             "Qwen2.5-32B's config.json"),
    Constant("model.num_layers", 64, "", "layers", "Qwen2.5-32B's config.json"),
    Constant("model.prefill_base_s", 0.05, "s", "launches of a forward", "assumed"),
    Constant("model.prefill_token_s", DENSE_FLOPS_32B / 5e14, "s/token", "weights", f"{_KERNEL_NOTE}, 5e14 assumed"),
    Constant("model.prefill_pair_s", GQA_FLOPS_32B / 4e14, "s/pair", "attention", f"{_KERNEL_NOTE}: 4e14, assumed"),
    Constant("model.decode_base_s", 0.025, "s", "reading 64 GB of weights from HBM", "3.35 TB/s, 76 % of peak"),
    Constant("model.decode_per_context_token_s", 262144 / 2.5e12, "s/token", "KV from HBM", "75 % of 3.35 TB/s"),
    Constant("cluster.prefill_group_engines", 1, "engines", "a dense model on one GPU does not wait", "model shape"),
    Constant("cluster.decode_group_engines", 1, "engines", "a dense model on one GPU does not wait", "model shape"),
    Constant("cluster.prefill_kv_bytes", 17_180_000_000, "bytes", "HBM of a prefill GPU for KV: one longest context, 80"
             " GB less 65 do not hold it; the paper's GPU must have more", "the least that Basic can run with"),
    Constant("cluster.decode_kv_bytes", 60_000_000_000, "bytes", "HBM of a decode GPU for KV",
             "a GPU of 141 GB (H200); 80 GB would hold less than one longest context"),
    Constant("cluster.staging_bytes", 320_000_000_000, "bytes", "staging DRAM of a node", f"{PAPER}, section 7.1"),
    Constant("scheduler.admission_s", 0.05, "s", "client to scheduler's queue", "assumed"),
    Constant("scheduler.handover_s", 0.02, "s", "from prefill to decode beside the transfers", "assumed"),
    _MEMORY,
)  # fmt: skip

CONSTANTS: Mapping[str, Sequence[Constant]] = {"660B": _660B, "27B": _27B, "32B": _32B}
DEFAULT_NODES = {"660B": (2, 4), "27B": (1, 1), "32B": (1, 2)}  # prefill, decode (section 7.1)


def model_spec(model: str) -> SimSpec:
    """A spec with the model's constants, and the paper's default nodes."""
    tables: dict[str, dict[str, Any]] = {"cluster": {}, "model": {}, "scheduler": {}}
    for one in CONSTANTS[model]:
        table, key = one.key.split(".")
        tables[table][key] = one.value
    prefill, decode = DEFAULT_NODES[model]
    cluster = ClusterSpec(**tables["cluster"])
    return SimSpec(
        cluster=replace(cluster, prefill_nodes=prefill, decode_nodes=decode),
        model=ModelSpec(**tables["model"]),
        scheduler=SchedulerSpec(**tables["scheduler"]),
    )


def constants_json() -> dict[str, Any]:
    return {model: [asdict(one) for one in found] for model, found in CONSTANTS.items()}

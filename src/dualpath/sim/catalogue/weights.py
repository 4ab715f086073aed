"""Weight bytes: what every GPU holds, what a group of GPUs shares, and whether a model fits at all.

The usual placement of large mixture-of-experts models (DeepSeek-V3, arXiv 2412.19437, section 3.4): attention,
embedding and output head on every GPU, the FFN spread over the group. ``attention_gpus`` > 1 splits the former too
(tensor parallelism).
"""

from __future__ import annotations

from dataclasses import dataclass

from dualpath.core.errors import ConfigError
from dualpath.sim.catalogue.gpus import Gpu
from dualpath.sim.catalogue.shape import ModelShape

# MXFP4: 32 elements of 4 bits share a scale of 8 bits (OCP Microscaling formats, version 1.0).
WEIGHT_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "mxfp4": 4.25 / 8}
HEAD_BYTES = WEIGHT_BYTES["bf16"]  # embedding and output head stay half precision in every published checkpoint here


@dataclass(frozen=True, slots=True)
class WeightBytes:
    attention: float
    ffn: float  # dense FFN, shared experts, routers
    experts: float  # routed, all of them
    head: float  # the output head; read by every decode step
    embedding: float  # held, hardly read; 0 when it is the head

    @property
    def total(self) -> float:
        return self.attention + self.ffn + self.experts + self.head + self.embedding

    def per_gpu(self, ffn_gpus: int, attention_gpus: int = 1) -> float:
        own = self.attention + self.head + self.embedding
        return own / attention_gpus + (self.ffn + self.experts) / ffn_gpus


def weight_bytes(model: ModelShape) -> WeightBytes:
    linear = WEIGHT_BYTES[model.linear_dtype]
    head = model.head_params * HEAD_BYTES
    return WeightBytes(
        attention=model.attention_params * linear,
        ffn=model.ffn.dense_params(model.hidden) * linear,
        experts=model.ffn.expert_params(model.hidden) * WEIGHT_BYTES[model.expert_dtype],
        head=head,
        embedding=0.0 if model.is_tied else head,
    )


def free_hbm_bytes(
    model: ModelShape, gpu: Gpu, ffn_gpus: int, *, attention_gpus: int = 1, usable_fraction: float = 0.9
) -> float:
    """HBM of one GPU that is left for KV and activations.

    ``usable_fraction``: of the HBM, after context and workspace of the runtime (0.9 is the default of vLLM's
    ``gpu_memory_utilization``). Raises ConfigError when the weights alone do not fit.
    """
    for name, value in (("ffn_gpus", ffn_gpus), ("attention_gpus", attention_gpus)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    needed = weight_bytes(model).per_gpu(ffn_gpus, attention_gpus)
    usable = gpu.hbm_bytes * usable_fraction
    free = usable - needed
    if free <= 0:
        raise ConfigError(
            f"{model.name} does not fit on {gpu.name}: its weights take {needed / 1e9:.1f} GB of each of {ffn_gpus} "
            f"GPUs, {usable / 1e9:.1f} GB are usable"
        )
    return free

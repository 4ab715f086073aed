"""How large everything is: a check of minutes on a GPU, the same steps in seconds on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dualpath.models.families import SUPPORTED_FAMILIES


@dataclass(frozen=True, slots=True)
class Scale:
    families: tuple[str, ...]
    dtype: str  # of everything that is timed
    model: Mapping[str, Any]  # ``init_model``'s sizes of the model that is timed
    contexts: tuple[int, ...]  # of decode
    batches: tuple[int, ...]
    kernel_tokens: int  # longest context of a kernel alone
    copy_bytes: int
    profile_s: float
    repeats: int
    history_tokens: int  # of layer streaming
    new_tokens: int
    rollout_model: Mapping[str, Any]
    agents: int
    rounds: int
    first_tokens: int  # of each agent's first prompt
    append_tokens: int
    generate_tokens: int
    nic_mbps: float  # each storage NIC of the rollout
    staging_bytes: int


_GPU_MODEL = {
    "layers": 28, "hidden": 2048, "heads": 16, "kv_heads": 8, "head_dim": 128, "intermediate": 6144,
    "vocab_size": 151936, "max_context_tokens": 40960,
}  # fmt: skip
_CPU_MODEL = {"layers": 2, "max_context_tokens": 2048}

GPU = Scale(
    families=SUPPORTED_FAMILIES,
    dtype="bfloat16",
    model=_GPU_MODEL,
    contexts=(1024, 8192, 32768),
    batches=(1, 16, 64),
    kernel_tokens=32768,
    copy_bytes=1 << 30,
    profile_s=25.0,
    repeats=10,
    history_tokens=32768,
    new_tokens=512,
    rollout_model=_GPU_MODEL | {"layers": 8},  # reads of seconds, also where BLAKE2 checks them
    agents=12,
    rounds=8,
    first_tokens=4096,
    append_tokens=512,
    generate_tokens=32,
    nic_mbps=3000.0,
    staging_bytes=12 << 30,
)
CPU = Scale(
    families=("gpt_oss", "deepseek_v3"),
    dtype="float32",
    model=_CPU_MODEL,
    contexts=(64, 256),
    batches=(1, 3),
    kernel_tokens=256,
    copy_bytes=1 << 20,
    profile_s=0.5,
    repeats=1,
    history_tokens=256,
    new_tokens=32,
    rollout_model=_CPU_MODEL,
    agents=2,
    rounds=2,
    first_tokens=200,
    append_tokens=50,
    generate_tokens=4,
    nic_mbps=400.0,
    staging_bytes=64 << 20,
)


def scale_for(device: str) -> Scale:
    return CPU if device == "cpu" else GPU

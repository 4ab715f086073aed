"""A rank's shard of a model: transformers deals out the weights by the family's own plan while it reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.distributed.configuration_utils import DistributedConfig

from dualpath.core.errors import ConfigError, UnsupportedModelError
from dualpath.models.families import MLA_FAMILIES, check_model_dir, layout_of
from dualpath.models.hf_model import HfModel
from dualpath.models.kernels.select import select_kernels
from dualpath.models.layout import GqaLayout
from dualpath.models.load import check_transformers, load_weights, model_spec, read, torch_dtype
from dualpath.models.parallel.group import ProcessGroup
from dualpath.models.parallel.shares import Shares, shares_of
from dualpath.models.seam import ModelSpec

# Tokens of these were compared with one process's. gpt_oss has no plan for its attention.
PARALLEL_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", *MLA_FAMILIES)


def check_parallel(model_dir: Path, world: int, device: str) -> None:
    """Raises UnsupportedModelError or ConfigError where ``world`` ranks cannot run this model together."""
    family = check_model_dir(model_dir)
    check_transformers(family)
    if family not in PARALLEL_FAMILIES:
        raise UnsupportedModelError(
            f"model_type {family!r} has no tensor-parallel plan that serves: one of {', '.join(PARALLEL_FAMILIES)}"
        )
    config = _config(model_dir)
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name)
        if heads % world and not (family in MLA_FAMILIES and name == "num_key_value_heads"):
            raise UnsupportedModelError(f"{name} = {heads} cannot be dealt out to {world} ranks")
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("auto", accelerator, f"{accelerator}:0"):
        raise ConfigError(f"device {device!r}: tensor parallelism here runs on {accelerator}, a device for each rank")


def load_shard(
    group: ProcessGroup, model_dir: Path, *, dtype: str, name: str | None, fingerprint: str
) -> tuple[HfModel, Shares, ModelSpec]:
    """The model with this rank's weights, its share of rows, and the whole model's spec. All ranks call it together."""
    family = check_model_dir(model_dir)
    config = _config(model_dir)
    kind = torch_dtype(dtype, config)
    os.environ.setdefault("LOCAL_RANK", str(group.rank))  # transformers: the device of this rank
    model = load_weights(model_dir, kind, distributed_config=DistributedConfig(tp_size=group.world))
    whole = layout_of(config, kind)
    shares = shares_of(whole, group.world)
    _check_heads(model, shares, model_dir)
    spec = model_spec(name or model_dir.resolve().name, family, fingerprint, model, whole)
    return HfModel(spec, model, shares.layout, select_kernels(model.device), group.world), shares, spec


def _check_heads(model: Any, shares: Shares, model_dir: Path) -> None:
    """That the plan dealt out heads the way ``shares`` thinks: anything else would mix up heads."""
    if not isinstance(shares.layout, GqaLayout):
        return
    weight = model.model.layers[0].self_attn.k_proj.weight
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    if local.shape[0] != shares.layout.kv_heads * shares.layout.head_dim:
        raise UnsupportedModelError(
            f"{model_dir}: transformers deals out {tuple(local.shape)} of k_proj, not whole heads"
        )


def _config(model_dir: Path) -> Any:
    return read(
        lambda: AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False), model_dir
    )

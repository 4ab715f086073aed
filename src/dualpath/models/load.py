"""Load a local Hugging Face model directory, weights and config unmodified, as a ``seam.Model``."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from dualpath.core.errors import ConfigError, UnsupportedModelError
from dualpath.models.dequantise import blocks_of_one_size, dequantising
from dualpath.models.families import SPARSE_FAMILIES, SPARSE_SINCE, check_model_dir, layout_of, one_line
from dualpath.models.hf_model import HfModel
from dualpath.models.kernels.select import select_kernels
from dualpath.models.layout import KvLayout, row_bytes
from dualpath.models.packed import pack_linears
from dualpath.models.seam import ModelSpec
from dualpath.models.step import ATTENTION_NAME

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    model_dir: str | Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    name: str | None = None,
    fingerprint: str | None = None,
    packs: bool = True,
) -> HfModel:
    """Load the model in ``model_dir``; ``dtype`` "auto" is the checkpoint's own.

    ``fingerprint`` saves hashing the weights when the caller knows it already. ``packs``: what runs on a CPU gets its
    weights in the order of ``packed``. Raises UnsupportedModelError for directories, families and checkpoints that
    cannot be served, ConfigError for settings that make no sense here.
    """
    path = Path(model_dir)
    _check_dtype(dtype)
    family = check_model_dir(path)
    check_transformers(family)
    target = _device(device)
    config = read(lambda: AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False), path)
    kind = torch_dtype(dtype, config)
    model = load_weights(path, kind, **straight_to(target))
    model.to(target)  # type: ignore[arg-type]  # its decorator hides the overloads
    if packs:
        pack_linears(model)
    layout = layout_of(config, kind)
    if fingerprint is None:
        from dualpath.models.fingerprint import fingerprint_model_dir

        fingerprint = fingerprint_model_dir(path)
    spec = model_spec(name or path.resolve().name, family, fingerprint, model, layout)
    return HfModel(spec, model, layout, select_kernels(target))


def check_transformers(family: str, version: str = transformers.__version__) -> None:
    """Raises UnsupportedModelError for a family that this release of transformers caches otherwise."""
    if family in SPARSE_FAMILIES and tuple(int(part) for part in version.split(".")[:2]) < SPARSE_SINCE:
        needed = ".".join(map(str, SPARSE_SINCE))
        raise UnsupportedModelError(f"{family} needs transformers {needed} or newer, here is {version}")


def model_spec(name: str, family: str, fingerprint: str, model: PreTrainedModel, layout: KvLayout) -> ModelSpec:
    config = model.config
    return ModelSpec(
        name=name,
        family=family,
        fingerprint=fingerprint,
        num_layers=config.num_hidden_layers,
        bytes_per_token_layer=row_bytes(layout),
        kv_dtype=layout.dtype,
        vocab_size=config.vocab_size,
        max_context_tokens=max_context_tokens(config),
        eos_token_ids=_eos_token_ids(model.generation_config, config),
        max_requests_per_forward=1 if family in SPARSE_FAMILIES else None,
    )


def max_context_tokens(config: Any) -> int:
    """What the positions reach, in tokens: scaled ones (YaRN, linear) reach further than the model was trained for."""
    limit = int(config.max_position_embeddings)
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict) or not isinstance(rope.get("factor"), int | float):
        return limit
    if rope.get("rope_type") == "linear":
        return max(limit, int(limit * rope["factor"]))
    if rope.get("rope_type") == "yarn":
        original = rope.get("original_max_position_embeddings") or limit
        return max(limit, int(original * rope["factor"]))
    return limit


def _eos_token_ids(generation: GenerationConfig | None, config: Any) -> tuple[int, ...]:
    for source in (generation, config):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            return tuple(ids) if isinstance(ids, list | tuple) else (int(ids),)
    return ()


def straight_to(device: torch.device) -> dict[str, Any]:
    """What has transformers read weights right to a device, which it does with accelerate only."""
    return {"device_map": {"": device}} if device.type != "cpu" and find_spec("accelerate") is not None else {}


def load_weights(path: Path, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """Refuse incomplete checkpoints: transformers would fill the gaps with random numbers and only warn.

    ``options`` are ``from_pretrained``'s.
    """
    if (quantised := dequantising(path)) is not None:
        options["quantization_config"] = quantised
    with blocks_of_one_size(quantised):
        model, report = read(
            lambda: AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,  # unset, transformers would ask whoever sits at the terminal
                attn_implementation=ATTENTION_NAME,
                output_loading_info=True,
                **options,
            ),
            path,
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise UnsupportedModelError(f"{path} lacks {len(missing)} weights, the first is {missing[0]}")
    loaded: PreTrainedModel = model.eval()
    return loaded


def read(load: Callable[[], Any], path: Path) -> Any:
    """transformers and safetensors raise many kinds of errors for broken files; all of them mean the same to a user."""
    try:
        return load()
    except Exception as error:
        raise UnsupportedModelError(f"cannot load {path}: {one_line(error)}") from error


def torch_dtype(dtype: str, config: Any) -> torch.dtype:
    """The dtype that a setting means for a checkpoint."""
    _check_dtype(dtype)
    return DTYPES[dtype] if dtype != "auto" else _checkpoint_dtype(config)


def _check_dtype(dtype: str) -> None:
    if dtype != "auto" and dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: one of auto, {', '.join(DTYPES)}")


def _checkpoint_dtype(config: Any) -> torch.dtype:
    dtype = config.dtype
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, None)
    if dtype is None:
        return torch.float32
    if dtype not in DTYPES.values():
        raise UnsupportedModelError(f"checkpoint dtype {dtype} is not supported: one of {', '.join(DTYPES)}")
    return dtype


def _device(device: str) -> torch.device:
    if device not in ("cpu", "cuda") and not device.startswith("cuda:"):
        raise ConfigError(f"unknown device {device!r}: cpu or cuda")
    if device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} was asked for, but this machine has no usable CUDA device")
    return torch.device(device)

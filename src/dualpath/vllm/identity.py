"""Which settings of a vLLM server change the KV of the same tokens: they are part of its blocks' name.

Weights, config.json, block size, device and vLLM's version are, too (``worker.namespace``); what cannot be named is
refused (``compat``). Kernels that only round otherwise are not told apart, but for eager and compiled forwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec
import torch

from dualpath.core.errors import ConfigError

_READ_WHAT_IS_FINGERPRINTED = {"auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "runai_streamer"}
_NOT_SAID: tuple[object, ...] = (None, "auto", "", False, {}, [])


def mode(config: Any) -> str:
    """How forwards run, as far as neither weights nor config.json say it. ``config``: a ``VllmConfig``.

    Raises ConfigError for a setting that has no text, the same at every start: a function, or an object of any kind.
    """
    model = config.model_config
    how = "eager" if model.enforce_eager else f"compiled{int(config.compilation_config.mode or 0)}"
    parts = [how, str(model.dtype).removeprefix("torch.")]
    return "-".join(parts + [f"{name}={_short(name, value)}" for name, value in _said(config).items() if value])


def _said(config: Any) -> dict[str, Any]:
    """By vLLM's names; None for what is as by default."""
    model, cache, load = config.model_config, config.cache_config, config.load_config
    found = {
        "cache_dtype": cache.cache_dtype,
        "kv_cache_dtype_skip_layers": cache.kv_cache_dtype_skip_layers,
        "quantization": model.quantization,
        "quantization_config": model.quantization_config,
        "hf_overrides": model.hf_overrides,
        "model_class_overrides": model.model_class_overrides,
        "model_impl": model.model_impl,
        "config_format": None if model.config_format == "hf" else model.config_format,
        "load_format": None if load.load_format in _READ_WHAT_IS_FINGERPRINTED else load.load_format,
        "max_model_len": model.max_model_len if _depends_on_length(model.hf_text_config) else None,
    }
    if found["load_format"]:
        found["model_loader_extra_config"] = load.model_loader_extra_config  # of tensorizer: where the weights are
    return {name: None if value in _NOT_SAID else value for name, value in found.items()}


def _depends_on_length(text_config: Any) -> bool:
    """Longrope takes other factors, for all tokens, where the longest context is longer than the original one."""
    rope = getattr(text_config, "rope_parameters", None) or {}
    of_kinds = [part for part in rope.values() if isinstance(part, dict)]
    return any(part.get("rope_type") == "longrope" for part in (rope, *of_kinds))


def _short(name: str, value: Any) -> str:
    if isinstance(value, str | int):
        return str(value)
    try:
        text = msgspec.json.encode(value, order="sorted", enc_hook=_dtype)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"DualPath cannot serve this: {name}: blocks cannot be named by it: {error}") from None
    return hashlib.blake2b(text, digest_size=4).hexdigest()


def _dtype(value: Any) -> str:
    if isinstance(value, torch.dtype):
        return str(value)
    raise TypeError(f"a {type(value).__name__} may be another at every start")


def packing(config: Any, layer_names: Iterable[str]) -> str:
    """How these layers' kernels lay KV out inside a block: their backends; on CPUs each instruction set has its own.

    After vLLM has built the layers' metadata builders, as it has when it registers KV caches.
    """
    layers = [config.compilation_config.static_forward_context[name] for name in layer_names]
    kinds = {(layer.get_attn_backend().get_name(), getattr(layer, "isa", None)) for layer in layers}
    return "+".join(sorted(name + (f".{isa}" if isa else "") for name, isa in kinds))

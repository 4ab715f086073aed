"""Servers that compute other KV for the same tokens, or lay it out otherwise, find no blocks of each other."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dualpath.core.errors import ConfigError
from dualpath.vllm.identity import mode, packing


def config(**changes: Any) -> Any:
    """A ``VllmConfig`` as far as it is read. ``changes``: "part.setting" -> value."""
    made = SimpleNamespace(
        model_config=SimpleNamespace(
            enforce_eager=True, dtype="torch.bfloat16", quantization=None, quantization_config=None, hf_overrides={},
            model_class_overrides={}, model_impl="auto", config_format="hf", max_model_len=8192,
            hf_text_config=SimpleNamespace(rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
        ),
        cache_config=SimpleNamespace(cache_dtype="auto", kv_cache_dtype_skip_layers=[]),
        load_config=SimpleNamespace(load_format="auto", model_loader_extra_config={}),
        compilation_config=SimpleNamespace(mode=3, static_forward_context={}),
    )  # fmt: skip
    for path, value in changes.items():
        part, name = path.split(".")
        assert hasattr(getattr(made, part), name)
        setattr(getattr(made, part), name, value)
    return made


def rope(**parameters: Any) -> dict[str, Any]:
    return {"model_config.hf_text_config": SimpleNamespace(rope_parameters=parameters)}


OTHERS: dict[str, dict[str, Any]] = {
    "compiled": {"model_config.enforce_eager": False},
    "dtype": {"model_config.dtype": "torch.float16"},
    "fp8": {"cache_config.cache_dtype": "fp8"},
    "fp8_e5m2": {"cache_config.cache_dtype": "fp8_e5m2"},
    "but one layer": {"cache_config.cache_dtype": "fp8", "cache_config.kv_cache_dtype_skip_layers": ["0"]},
    "quantization": {"model_config.quantization": "fp8"},
    "quantization by layers": {"model_config.quantization_config": {"linear": "fp8_per_token"}},
    "rope": {"model_config.hf_overrides": {"rope_parameters": {"rope_theta": 2}}},
    "classes": {"model_config.model_class_overrides": {"A": "b:C"}},
    "implementation": {"model_config.model_impl": "transformers"},
    "config": {"model_config.config_format": "mistral"},
    "weights": {"load_config.load_format": "dummy"},
    "tensorizer": {"load_config.load_format": "tensorizer", "load_config.model_loader_extra_config": {"uri": "a"}},
    "tensorizer of another": {
        "load_config.load_format": "tensorizer",
        "load_config.model_loader_extra_config": {"uri": "b"},
    },
    "longrope": rope(rope_type="longrope"),
    "shorter longrope": rope(rope_type="longrope") | {"model_config.max_model_len": 4096},
}


def test_whatever_changes_kv_is_in_its_name() -> None:
    found = {name: mode(config(**changes)) for name, changes in {"plain": {}, **OTHERS}.items()}
    assert found["plain"] == "eager-bfloat16"
    assert found["fp8_e5m2"] == "eager-bfloat16-cache_dtype=fp8_e5m2"
    assert len(set(found.values())) == len(found), found


@pytest.mark.parametrize(
    "changes",
    [
        {"load_config.load_format": "safetensors"},
        {"load_config.load_format": "runai_streamer", "load_config.model_loader_extra_config": {"concurrency": 4}},
        {"model_config.config_format": "auto"},
        {"model_config.max_model_len": 4096},
    ],
    ids=["format", "streamer", "config", "length"],
)
def test_what_changes_nothing_is_not(changes: dict[str, Any]) -> None:
    assert mode(config(**changes)) == mode(config())


def test_longrope_of_some_kinds_of_layers_counts() -> None:
    nested = rope(full_attention={"rope_type": "longrope", "long_factor": [2.0]})
    assert mode(config(**nested)) == "eager-bfloat16-max_model_len=8192"


@dataclass
class Scheme:
    """As vLLM's own settings are: dataclasses, with dtypes in them."""

    weight: Any
    ignore: Any = ()


def test_a_setting_has_the_same_name_at_every_start() -> None:
    def named(value: Any) -> str:
        return mode(config(**{"model_config.quantization_config": value}))

    assert named(Scheme(torch.int8)) == named(Scheme(torch.int8))
    assert named(Scheme(torch.int8)) != named(Scheme(torch.float8_e4m3fn))
    assert list({0, 8}) != list({8, 0}), "filled in another order; texts' changes with each start"
    assert named(Scheme(None, {0, 8})) == named(Scheme(None, {8, 0}))


@pytest.mark.parametrize("value", [lambda config: config, {"a": object()}, Scheme(object()), {1: "a"}])
def test_a_setting_without_a_text_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="DualPath cannot serve this: hf_overrides: blocks cannot be named by it"):
        mode(config(**{"model_config.hf_overrides": value}))


def packed(*kinds: tuple[str, str | None]) -> str:
    """By layers of these backends and, on CPUs, instruction sets."""
    made = config()
    for number, (backend, isa) in enumerate(kinds):
        name = SimpleNamespace(get_name=lambda backend=backend: backend)
        layer = SimpleNamespace(get_attn_backend=lambda name=name: name, **({"isa": isa} if isa else {}))
        made.compilation_config.static_forward_context[str(number)] = layer
    return packing(made, map(str, range(len(kinds))))


def test_each_backend_and_each_cpu_packs_blocks_its_own_way() -> None:
    assert packed(("FLASH_ATTN", None), ("FLASH_ATTN", None)) == "FLASH_ATTN"
    assert packed(("CPU_ATTN", "amx")) == "CPU_ATTN.amx"
    assert packed(("CPU_ATTN", "vec")) == "CPU_ATTN.vec"
    assert packed(("TRITON_ATTN", None), ("FLASH_ATTN", None)) == "FLASH_ATTN+TRITON_ATTN"

"""What of a real vLLM's configuration is refused when a server starts, and what is not."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.vllm.servers import environment, vllm_python

from dualpath.vllm.settings import ConnectorSettings, transfer_config

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(300)]

SETTINGS = ConnectorSettings(role="prefill", engine_id="p0", port=1, store_url="file:///kv", num_slots=8)
TOLD = transfer_config(SETTINGS)
# name -> (arguments of the server, changes to what vLLM makes of them, kinds of KV groups, what the refusal says)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str], str | None]] = {
    "sound": ({}, {}, ["full"], None),
    "compiled": ({"enforce_eager": False}, {}, ["full"], None),
    "lora": ({"enable_lora": True}, {}, ["full"], "--enable-lora"),
    "async scheduling": ({}, {"scheduler_config.async_scheduling": True}, ["full"], "--no-async-scheduling"),
    "speculation": (
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}},
        {},
        ["full"],
        "speculative",
    ),
    "many hosts": ({}, {"parallel_config.nnodes": 2}, ["full"], "--nnodes 2: all ranks"),
    "pipeline parallel": ({}, {"parallel_config.pipeline_parallel_size": 2}, ["full"], "--pipeline-parallel-size 2"),
    "data parallel": ({}, {"parallel_config.data_parallel_size": 2}, ["full"], "--data-parallel-size 2"),
    "partial prefills": ({}, {"scheduler_config.long_prefill_token_threshold": 64}, ["full"], "long-prefill"),
    "prompt embeds": ({"enable_prompt_embeds": True}, {}, ["full"], "--enable-prompt-embeds"),
    "config from elsewhere": ({}, {"model_config.hf_config_path": "elsewhere"}, ["full"], "--hf-config-path"),
    "changing weights": ({}, {"weight_transfer_config": "some"}, ["full"], "--weight-transfer-config"),
    "sleep": ({}, {"model_config.enable_sleep_mode": True}, ["full"], "--enable-sleep-mode"),
    "not causal": ({}, {"attention_config.use_non_causal": True}, ["full"], "later tokens"),
    "not causal layers": ({}, {}, ["non-causal"], "later tokens"),
    "diffusion": ({}, {"diffusion_config": "some"}, ["full"], "diffusion"),
    "hybrid": ({}, {}, ["full", "sliding"], "2 groups"),
    "sliding window": ({}, {}, ["sliding"], "SlidingWindowSpec"),
    "MLA on a CPU": ({}, {}, ["mla"], "MLA on a CPU"),
    "full layers with a window": ({}, {}, ["full-with-window"], "last 256 tokens"),
    "producer": ({"kv_role": "kv_producer"}, {}, ["full"], "kv_both"),
    "failing requests": ({"kv_load_failure_policy": "fail"}, {}, ["full"], "recompute"),
}


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096}
LONGROPE |= {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
# name -> (arguments of the server, changes to what vLLM makes of them, what their blocks' name says of them)
NAMES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "plain": ({}, {}, "eager-bfloat16"),
    "dtype": ({"dtype": "float32"}, {}, "eager-float32"),
    "safetensors": ({"load_format": "safetensors"}, {}, "eager-bfloat16"),
    "fp8 KV": ({"kv_cache_dtype": "fp8_e5m2"}, {}, "eager-bfloat16-cache_dtype=fp8_e5m2"),
    "some layers": ({}, {"cache_config.kv_cache_dtype_skip_layers": ["0"]}, "-kv_cache_dtype_skip_layers="),
    "quantized": ({}, {"model_config.quantization": "fp8"}, "-quantization=fp8"),
    "otherwise quantized": ({}, {"model_config.quantization_config": {"a": 1}}, "-quantization_config="),
    "overrides": (
        {"hf_overrides": {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}},
        {},
        "-hf_overrides=",
    ),
    "other classes": ({}, {"model_config.model_class_overrides": {"A": "b:C"}}, "-model_class_overrides="),
    "transformers": ({}, {"model_config.model_impl": "transformers"}, "-model_impl=transformers"),
    "mistral's config": ({}, {"model_config.config_format": "mistral"}, "-config_format=mistral"),
    "random weights": ({"load_format": "dummy"}, {}, "-load_format=dummy"),
    "longrope": (
        {"hf_overrides": {"rope_parameters": LONGROPE}, "max_model_len": 4096},
        {},
        "-max_model_len=4096",
    ),
}


@pytest.fixture(scope="module")
def said(vllm_model: Path) -> dict[str, Any]:
    asked: dict[str, Any] = {
        f"name: {name}": {"transfer": TOLD, "arguments": {"enforce_eager": True, **arguments}, "changes": changes}
        for name, (arguments, changes, _) in NAMES.items()
    }
    for name, (arguments, changes, groups, _) in CASES.items():
        transfer = TOLD | {key: value for key, value in arguments.items() if key in TOLD}
        others = {"enforce_eager": True, **{key: value for key, value in arguments.items() if key not in TOLD}}
        asked[name] = {"transfer": transfer, "arguments": others, "changes": changes, "groups": groups}
    program = Path(__file__).with_name("compat_cases.py")
    done = subprocess.run(
        [str(vllm_python()), str(program), str(vllm_model)],
        input=json.dumps(asked),
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = (line.partition(" ") for line in done.stdout.splitlines())
    return {kind: json.loads(text) for kind, _, text in lines if kind in ("REFUSED", "NAMED", "PACKED")}


@pytest.mark.parametrize("name", list(CASES))
def test_what_a_server_is_refused_for(said: dict[str, Any], name: str) -> None:
    says, refused = CASES[name][3], said["REFUSED"]
    if says is None:
        assert name not in refused
    else:
        assert says in refused[name]
        assert "\n" not in refused[name]


@pytest.mark.parametrize("name", list(NAMES))
def test_what_blocks_are_named_by(said: dict[str, Any], name: str) -> None:
    found, expected = said["NAMED"][f"name: {name}"], NAMES[name][2]
    assert expected in found if expected.startswith("-") else found == expected
    assert f"name: {name}" not in said["REFUSED"]


def test_a_layer_says_how_it_packs_blocks_on_this_cpu(said: dict[str, Any]) -> None:
    assert re.fullmatch(r"CPU_ATTN\.[a-z]+[0-9]*", said["PACKED"])

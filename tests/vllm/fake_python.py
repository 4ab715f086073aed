"""A Python that seems to have vLLM, and whose servers are ``tests.vllm.fake_main``; a configuration that has it run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.scheduler.fixtures import BLOCK

from dualpath.config import ServeConfig, load_config

_ROOT = Path(__file__).resolve().parents[2]
_MODEL = {
    "num_hidden_layers": 2,
    "max_position_embeddings": 400,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "vocab_size": 512,
    "dtype": "float32",
}


def fake_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In ``folder``, which becomes a model directory, too."""
    monkeypatch.setenv("PYTHONPATH", f"{_ROOT / 'src'}{os.pathsep}{_ROOT}")
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.vllm.fake_main "$@"\n')
    script.chmod(0o755)
    (folder / "config.json").write_text(json.dumps(_MODEL))
    return script


def config_of(python: Path, /, **more: Any) -> ServeConfig:
    """``more``: of the [vllm] table."""
    flags: dict[tuple[str, str], Any] = {
        ("model", "dir"): str(python.parent),
        ("store", "url"): f"file://{python.parent}/store",
        ("store", "block_tokens"): str(BLOCK),
        ("cluster", "engine"): "vllm",
        ("vllm", "python"): str(python),
        ("vllm", "log_dir"): f"{python.parent}/logs",
        ("vllm", "start_s"): "60",
    }
    flags |= {("vllm", name): value for name, value in more.items()}
    return load_config(ServeConfig, None, flags)

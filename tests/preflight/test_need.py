"""What a node's memory is estimated to: on a CPU, float32 models that are small have their weights twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dualpath.config import MemoryConfig, ModelConfig, ServeConfig, StoreConfig
from dualpath.preflight import need
from dualpath.preflight.model_files import weight_bytes
from dualpath.preflight.model_kind import model_kind


@pytest.mark.parametrize(("dtype", "times"), [("float32", 2), ("bfloat16", 1)])
def test_weights_count_as_often_as_they_are_held(
    dtype: str, times: int, tiny_model_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelConfig(dir=tiny_model_dir("llama"), dtype=dtype, device="cpu")
    config = ServeConfig(
        model=model, store=StoreConfig(url="memory://need"), memory=MemoryConfig(max_context_tokens=256)
    )
    kind = model_kind(config, "cpu")
    weights = weight_bytes(config.model.dir)
    monkeypatch.setattr(need, "MOST_TWICE_BYTES", weights)
    small_bytes = need.host_bytes(config, None, kind)
    monkeypatch.setattr(need, "MOST_TWICE_BYTES", weights - 1)
    assert small_bytes - need.host_bytes(config, None, kind) == (times - 1) * weights

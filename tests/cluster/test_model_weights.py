"""Other weights for a process's models: taken over, or written over the old ones while no engine computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dualpath.cluster.model_weights import ModelUpdates
from dualpath.cluster.places import Place
from dualpath.config import ModelConfig
from dualpath.core.errors import ConfigError, UnsupportedModelError
from dualpath.core.ids import EngineId, NodeId
from dualpath.core.plan import Role
from dualpath.core.runtime import SystemRuntime
from dualpath.core.weights import Weights
from dualpath.models.hf_model import HfModel
from dualpath.models.load import load_model
from dualpath.models.noise import add_noise
from dualpath.models.seam import Model

Parts = tuple[ModelUpdates, dict[Place, Model], Path]


@pytest.fixture(params=[False, True], ids=["beside", "over"])
def parts(request: pytest.FixtureRequest, tiny_model_dir: Callable[[str], Path], tmp_path: Path) -> Parts:
    """Two engines that share a device, and a directory with other weights."""
    first = tmp_path / "first"
    shutil.copytree(tiny_model_dir("llama"), first)
    model = load_model(first)
    places = [Place(EngineId(f"e{i}"), NodeId("n"), Role.DECODE, "cpu") for i in range(2)]
    models: dict[Place, Model] = {places[0]: model, places[1]: model.share()}
    config = ModelConfig(dir=first, device="cpu")
    updates = ModelUpdates(config, models, SystemRuntime(), lambda _: None, overwrites=request.param)
    return updates, models, add_noise(first, tmp_path / "second", scale=0.5)


def _weights_of(model: Model) -> torch.Tensor:
    assert isinstance(model, HfModel)
    return torch.cat([tensor.to_dense().flatten() for tensor in model._model.state_dict().values()])


def _take_all(updates: ModelUpdates, models: dict[Place, Model], weights: Weights) -> list[Model]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda model: updates.take(weights, model), list(models.values())))


def test_all_engines_have_them_and_back(parts: Parts) -> None:
    updates, models, second = parts
    start = next(iter(models.values()))
    fingerprint, values = start.spec.fingerprint, _weights_of(start).clone()
    weights = Weights(1, "1", str(second))
    new = updates.load(weights)
    assert new == updates.load(weights) != fingerprint
    taken = _take_all(updates, models, weights)
    assert list(models.values()) == taken
    expected = _weights_of(load_model(second))
    for model in taken:
        assert model.spec.fingerprint == new
        assert torch.equal(_weights_of(model), expected)
    first = Weights(2, "2", str(second.with_name("first")))
    assert updates.load(first) == fingerprint, "the same weights, byte for byte, have the same name"
    assert all(torch.equal(_weights_of(model), values) for model in _take_all(updates, models, first))


def test_one_byte_makes_other_weights(parts: Parts) -> None:
    updates, _, second = parts
    first = updates.load(Weights(1, "1", str(second)))
    shard = next(second.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-5000] ^= 1
    shard.write_bytes(data)
    assert updates.load(Weights(2, "2", str(second))) != first


def test_what_was_not_loaded_cannot_be_taken(parts: Parts) -> None:
    updates, models, second = parts
    weights = Weights(1, "1", str(second))
    updates.load(weights)
    updates.drop(weights)
    with pytest.raises(ConfigError, match="have not been loaded"):
        updates.take(weights, next(iter(models.values())))


def test_weights_that_are_computed_with_otherwise_are_refused(parts: Parts) -> None:
    """Weights that are written over others would be computed with as those were; what says nothing of it may differ."""
    updates, _, second = parts
    file = second / "config.json"
    config = json.loads(file.read_text()) | {"use_cache": False, "transformers_version": "4.0.0"}
    file.write_text(json.dumps(config))
    updates.load(Weights(1, "1", str(second)))
    file.write_text(json.dumps(config | {"rms_norm_eps": 0.125}))
    with pytest.raises(UnsupportedModelError, match=r"config\.json differs in rms_norm_eps"):
        updates.load(Weights(2, "2", str(second)))


def test_a_model_of_another_kind_is_refused(parts: Parts, tiny_model_dir: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedModelError, match="another kind: family is qwen3, not llama"):
        parts[0].load(Weights(1, "1", str(tiny_model_dir("qwen3"))))

"""Which directories are weights of the start's kind, and by which name their KV goes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dualpath.core.errors import UnsupportedModelError
from dualpath.models.updates import StartWeights, read_json_config

TENSORS = {"a": torch.arange(8.0), "b": torch.ones(2, 3)}


def _model(where: Path, config: dict[str, object] | None = None, **changes: torch.Tensor | None) -> Path:
    where.mkdir()
    (where / "config.json").write_text(json.dumps(config or {"layers": 2, "transformers_version": "5"}))
    tensors = {name: tensor for name, tensor in (TENSORS | changes).items() if tensor is not None}
    save_file(tensors, where / "model.safetensors")
    return where


def test_the_same_bytes_have_the_starts_name_and_others_their_own(tmp_path: Path) -> None:
    start = StartWeights(_model(tmp_path / "start"), "the start")
    same = shutil.copytree(start.directory, tmp_path / "same")
    other = _model(tmp_path / "other", a=torch.arange(8.0) + 1)
    assert start.fingerprint_of(same) == start.fingerprint_of(start.directory) == "the start"
    assert start.fingerprint_of(other) not in ("the start", "")


def test_files_that_were_written_since_have_the_starts_name_no_more(tmp_path: Path) -> None:
    start = StartWeights(_model(tmp_path / "start"), "the start")
    shutil.rmtree(start.directory)
    other = _model(start.directory, a=torch.arange(8.0) + 1)
    assert start.fingerprint_of(other) != "the start"


def _gone(where: Path) -> None:
    shutil.rmtree(where)


def _without_config(where: Path) -> None:
    (where / "config.json").unlink()


def _cut(where: Path) -> None:
    path = where / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def _pickled(where: Path) -> None:
    (where / "model.safetensors").rename(where / "pytorch_model.bin")


def _stale_index(where: Path) -> None:
    """Whoever reads by it finds none of the weights that are there."""
    (where / "model.safetensors.index.json").write_text('{"weight_map": {"a": "old.safetensors"}}')


def _broken_index(where: Path) -> None:
    (where / "model.safetensors.index.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_gone, "there is no such directory"),
        (_without_config, "cannot read the model"),
        (_cut, "truncated"),
        (_pickled, r"no \*.safetensors weights"),
        (_stale_index, r"No such file .*old\.safetensors"),
        (_broken_index, "cannot read the model"),
    ],
)
def test_directories_that_are_no_whole_model(damage: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    start = StartWeights(_model(tmp_path / "start"), "the start")
    other = _model(tmp_path / "other")
    start.check_kind(other, read_json_config)
    damage(other)
    with pytest.raises(UnsupportedModelError, match=reason):
        start.check_kind(other, read_json_config)


@pytest.mark.parametrize(
    "changes",
    [{"a": None}, {"c": torch.ones(1)}, {"b": torch.ones(3, 2)}, {"b": torch.ones(2, 3, dtype=torch.bfloat16)}],
    ids=["less", "more", "shape", "format"],
)
def test_models_of_another_kind(changes: dict[str, torch.Tensor | None], tmp_path: Path) -> None:
    start = StartWeights(_model(tmp_path / "start"), "the start")
    other = _model(tmp_path / "other", **changes)
    with pytest.raises(UnsupportedModelError, match=r"1 of its weights have other names, .*, [abc] first"):
        start.check_kind(other, read_json_config)


def test_another_config(tmp_path: Path) -> None:
    start = StartWeights(_model(tmp_path / "start"), "the start")
    other = _model(tmp_path / "other", {"layers": 3, "rope": 1, "transformers_version": "4"})
    with pytest.raises(UnsupportedModelError, match=r"config.json differs in layers, rope$"):
        start.check_kind(other, read_json_config)


def test_a_head_that_is_tied_may_be_written_or_not(tmp_path: Path) -> None:
    head = {"lm_head.weight": torch.ones(4)}
    tied: dict[str, object] = {"tie_word_embeddings": True}
    start = StartWeights(_model(tmp_path / "start", tied, **head), "the start")
    start.check_kind(_model(tmp_path / "other", tied), read_json_config)
    start = StartWeights(_model(tmp_path / "own", {"x": 1}, **head), "the start")
    with pytest.raises(UnsupportedModelError, match="other names"):
        start.check_kind(_model(tmp_path / "lacks", {"x": 1}), read_json_config)

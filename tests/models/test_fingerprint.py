"""Equal models have equal fingerprints wherever they lie; any ordinary change of config or weights changes them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dualpath.core.errors import UnsupportedModelError
from dualpath.models import fingerprint
from dualpath.models.fingerprint import fingerprint_model_dir


def make_model(model_dir: Path) -> Path:
    model_dir.mkdir()
    (model_dir / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    generator = torch.Generator().manual_seed(0)
    for shard in range(2):
        names = [f"layers.{shard}.weight", f"layers.{shard}.bias"]
        values = [torch.rand(100, 64, generator=generator), torch.rand(3, generator=generator)]
        tensors = dict(zip(names, values, strict=True))
        save_file(tensors, model_dir / f"model-{shard}.safetensors", metadata={"format": "pt"})
    return model_dir


def edit_config(model_dir: Path, **fields: object) -> None:
    path = model_dir / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_tensor(model_dir: Path, name: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = model_dir / f"model-{name.split('.')[1]}.safetensors"
    tensors = load_file(path)
    tensors[name] = edit(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


def set_element(row: int, column: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def edit(tensor: torch.Tensor) -> torch.Tensor:
        tensor[row, column] += 1.0
        return tensor

    return edit


def test_path_and_time_do_not_matter(tmp_path: Path) -> None:
    model = make_model(tmp_path / "a")
    before = fingerprint_model_dir(model)
    copy = Path(shutil.copytree(model, tmp_path / "elsewhere"))
    os.utime(copy / "model-0.safetensors", (1, 1))
    (copy / "README.md").write_text("notes")
    assert fingerprint_model_dir(copy) == before
    assert len(bytes.fromhex(before)) == 16


def test_cosmetic_config_fields_do_not_matter(tmp_path: Path) -> None:
    model = make_model(tmp_path / "a")
    before = fingerprint_model_dir(model)
    edit_config(model, transformers_version="9.9", _name_or_path="/somewhere")
    reordered = dict(reversed(json.loads((model / "config.json").read_text()).items()))
    (model / "config.json").write_text(json.dumps(reordered, indent=4))
    assert fingerprint_model_dir(model) == before


@pytest.mark.parametrize("fields", [{"rope_theta": 1e6}, {"hidden_size": 65}, {"text_config": {"hidden_size": 1}}])
def test_config_changes_are_seen(tmp_path: Path, fields: dict[str, object]) -> None:
    model = make_model(tmp_path / "a")
    before = fingerprint_model_dir(model)
    edit_config(model, **fields)
    assert fingerprint_model_dir(model) != before


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("layers.0.weight", lambda t: t * 1.001),  # a fine-tune
        ("layers.1.weight", lambda t: t * 1.001),
        ("layers.1.bias", lambda t: t + 1e-3),
        ("layers.0.weight", lambda t: t.to(torch.bfloat16)),
        ("layers.0.weight", lambda t: t.reshape(64, 100)),  # the same bytes in another shape
        ("layers.0.weight", set_element(0, 0)),
        ("layers.0.weight", set_element(50, 0)),  # the middle
        ("layers.0.weight", set_element(99, 63)),
    ],
)
def test_weight_changes_are_seen(tmp_path: Path, name: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model = make_model(tmp_path / "a")
    before = fingerprint_model_dir(model)
    edit_tensor(model, name, edit)
    assert fingerprint_model_dir(model) != before


def test_what_it_does_not_see(tmp_path: Path) -> None:
    """The documented limit: one element between the samples. If this fails, the docstring may promise more."""
    model = make_model(tmp_path / "a")
    before = fingerprint_model_dir(model)
    edit_tensor(model, "layers.0.weight", set_element(20, 0))
    assert fingerprint_model_dir(model) == before


def test_a_lost_shard_is_seen(tmp_path: Path) -> None:
    model = make_model(tmp_path / "a")
    before = fingerprint_model_dir(model)
    (model / "model-1.safetensors").unlink()
    assert fingerprint_model_dir(model) != before


def test_reads_little_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "large"
    model.mkdir()
    (model / "config.json").write_text("{}")
    save_file({"w": torch.zeros(4, 1024, 1024)}, model / "model.safetensors")
    num_read, pread = 0, os.pread

    def counting(fd: int, length: int, offset: int) -> bytes:
        nonlocal num_read
        data = pread(fd, length, offset)
        num_read += len(data)
        return data

    monkeypatch.setattr(os, "pread", counting)
    fingerprint_model_dir(model)
    assert num_read < 8192


def test_bin_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "BIN_SAMPLES", 8)
    model = tmp_path / "bin"
    model.mkdir()
    (model / "config.json").write_text("{}")
    weights = model / "pytorch_model.bin"
    seen = set()
    for num_bytes, value in [(5_000, 1), (100_000, 1), (100_001, 1), (100_000, 2)]:
        weights.write_bytes(bytes([value]) * num_bytes)
        seen.add(fingerprint_model_dir(model))
    weights.write_bytes(bytes([1]) * 99_999 + b"\x02")
    seen.add(fingerprint_model_dir(model))
    assert len(seen) == 5


def corrupt_no_config(model: Path) -> None:
    (model / "config.json").unlink()


def corrupt_json(model: Path) -> None:
    (model / "config.json").write_text("{\n\n")


def corrupt_list(model: Path) -> None:
    (model / "config.json").write_text("[]")


def corrupt_no_weights(model: Path) -> None:
    for shard in model.glob("*.safetensors"):
        shard.unlink()


def corrupt_truncated(model: Path) -> None:
    path = model / "model-1.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def corrupt_empty(model: Path) -> None:
    (model / "model-0.safetensors").write_bytes(b"")


def corrupt_garbage(model: Path) -> None:
    (model / "model-0.safetensors").write_bytes(b"\xff" * 4096)


def corrupt_header(model: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": ["a", 4]}}).encode()
    (model / "model-0.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


@pytest.mark.parametrize("corrupt", [f for name, f in sorted(globals().items()) if name.startswith("corrupt_")])
def test_unreadable_models_are_refused_in_one_line(tmp_path: Path, corrupt: Callable[[Path], None]) -> None:
    model = make_model(tmp_path / "a")
    corrupt(model)
    with pytest.raises(UnsupportedModelError) as caught:
        fingerprint_model_dir(model)
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError):
        fingerprint_model_dir(tmp_path / "none")

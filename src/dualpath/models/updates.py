"""Weights of an update as files: whether they are a model of the start's kind, and the name that their KV has."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from dualpath.core.errors import UnsupportedModelError
from dualpath.models.fingerprint import fingerprint_model_dir, safetensors_header, without_cosmetics

Signature: TypeAlias = tuple[tuple[str, int, int], ...]


class StartWeights:
    """What a model was started with, next to which updates are held. Any thread."""

    def __init__(self, directory: Path, fingerprint: str) -> None:
        """``fingerprint``: as the start's blocks are named."""
        self.directory = directory
        self._fingerprint, self._signature = fingerprint, signature(directory)
        self._whole: str | None = None  # of every byte, once it is known

    def fingerprint_of(self, directory: Path) -> str:
        """Of every byte; the start's own where they are the same, byte for byte, as when the start's were read."""
        whole = fingerprint_model_dir(directory, whole=True)
        if self._whole is None and signature(self.directory) == self._signature:
            self._whole = fingerprint_model_dir(self.directory, whole=True)
        return self._fingerprint if whole == self._whole else whole

    def check_kind(self, directory: Path, read_config: Callable[[Path], Mapping[str, Any]]) -> None:
        """From the files alone. Raises UnsupportedModelError, one line that says how they differ."""
        if not directory.is_dir():
            raise UnsupportedModelError(f"{directory}: there is no such directory")
        try:
            new, own = (without_cosmetics(dict(read_config(where))) for where in (directory, self.directory))
            found, wanted = (_shapes(where, own) for where in (directory, self.directory))
        except (OSError, ValueError, LookupError, TypeError) as error:
            text = " ".join((str(error) or repr(error)).split())
            raise UnsupportedModelError(f"cannot read the model in {directory}: {text}") from None
        if differ := sorted(key for key in new.keys() | own.keys() if new.get(key) != own.get(key)):
            text = f"config.json differs in {', '.join(differ)}"
            raise UnsupportedModelError(f"{directory}: a model of another kind: {text}")
        if not found:
            raise UnsupportedModelError(f"{directory}: no *.safetensors weights")
        if differ := sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)):
            text = f"{len(differ)} of its weights have other names, shapes or formats, {differ[0]} first"
            raise UnsupportedModelError(f"{directory}: a model of another kind: {text}")


def signature(directory: Path) -> Signature:
    """Changes when anything there is written."""
    found = sorted(path for path in directory.iterdir() if path.is_file())
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found)


def read_json_config(directory: Path) -> Mapping[str, Any]:
    found: dict[str, Any] = json.loads((directory / "config.json").read_bytes())
    return found


def _shapes(directory: Path, config: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """By name, of the files that are read: where an index is there, those that it names. A head that is tied to the
    embeddings may be written, and is not read."""
    index, found = directory / "model.safetensors.index.json", {}
    names = [path.name for path in directory.glob("*.safetensors")]
    if index.exists():
        names = list(json.loads(index.read_bytes())["weight_map"].values())
    for file_name in sorted(set(names)):
        with (directory / file_name).open("rb") as file:
            for name, entry in safetensors_header(file.fileno(), file_name)[1]:
                found[name] = entry["dtype"], tuple(entry["shape"])
    if config.get("tie_word_embeddings"):
        found.pop("lm_head.weight", None)
    return found

"""A model by its catalogue name or by a config.json that the user has."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dualpath.core.errors import ConfigError
from dualpath.sim.catalogue.config import shape_from_config
from dualpath.sim.catalogue.models import MODELS
from dualpath.sim.catalogue.shape import ModelShape

FILE_KV_DTYPE = "bf16"  # what engines cache in unless told otherwise


@dataclass(frozen=True, slots=True)
class FoundModel:
    shape: ModelShape
    kv_dtype: str  # unless the user names one


def find_model(name_or_path: str) -> FoundModel:
    """A name (in any case), a config.json, or a directory with one. Raises ConfigError saying what is wrong."""
    known = next((model for name, model in MODELS.items() if name.lower() == name_or_path.lower()), None)
    if known is not None:
        return FoundModel(known.shape, known.kv_dtype)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        names = ", ".join(MODELS)
        raise ConfigError(f"model {name_or_path!r}: there is no file {path}, and the catalogue has {names}")
    return FoundModel(_read_shape(path), FILE_KV_DTYPE)


def _read_shape(path: Path) -> ModelShape:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: must be a JSON object, not {type(config).__name__}")
    return shape_from_config(config, str(path), str(path))

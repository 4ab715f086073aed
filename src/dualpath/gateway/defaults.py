"""How requests that do not say are sampled: as the model's generation_config.json recommends, which is vLLM's rule."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualpath.core.errors import ConfigError

logger = logging.getLogger(__name__)

FILE_NAME = "generation_config.json"


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """OpenAI's own defaults, for a model that recommends nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # all
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def read_defaults(model_dir: Path) -> SamplingDefaults:
    """Says in the log what it found. ConfigError for values that cannot be."""
    try:
        fields = json.loads((model_dir / FILE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return SamplingDefaults()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {model_dir / FILE_NAME}: {error}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{model_dir / FILE_NAME} must hold an object")
    defaults = SamplingDefaults(
        temperature=_number(fields, "temperature", 1.0, 0.0, 2.0),
        top_p=_number(fields, "top_p", 1.0, 1e-9, 1.0),
        top_k=int(_number(fields, "top_k", 0, 0, 1 << 31)),
        min_p=_number(fields, "min_p", 0.0, 0.0, 1.0),
        repetition_penalty=_number(fields, "repetition_penalty", 1.0, 1e-9, 1e9),
    )
    if defaults != SamplingDefaults():
        logger.info("%s: where a request does not say, %s", FILE_NAME, defaults)
    return defaults


def _number(fields: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{FILE_NAME}: {name} must be a number from {low:g} to {high:g}, not {value!r}")
    return value

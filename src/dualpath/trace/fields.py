"""Checked access to parsed JSON: every wrong value becomes a ConfigError that names the field."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from dualpath.core.errors import ConfigError

MAX_TOKENS = 1 << 40  # far above any trace; keeps sums exact in 64 bits


def parse_object(text: str | bytes) -> dict[str, Any]:
    """One JSON object, or ConfigError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        detail = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else error
        raise ConfigError(f"not JSON ({detail})") from None
    return as_object(value)


def as_object(value: object, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{name or 'the line'} must be an object, not {type(value).__name__}")
    return value


def only(fields: dict[str, Any], known: Iterable[str]) -> None:
    """A field that nobody reads is a typing error, not data."""
    if unknown := set(fields).difference(known):
        raise ConfigError(f"unknown field {', '.join(sorted(map(repr, unknown)))}")


def required(fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise ConfigError(f"{name} is missing")
    return fields[name]


def text(fields: dict[str, Any], name: str) -> str:
    value = required(fields, name)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} must be a non-empty string, not {value!r}")
    return value


def array(fields: dict[str, Any], name: str) -> list[Any]:
    value = required(fields, name)
    if not isinstance(value, list):
        raise ConfigError(f"{name} must be a list, not {type(value).__name__}")
    return value


def integer(fields: dict[str, Any], name: str, *, least: int) -> int:
    value = required(fields, name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_TOKENS:
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value


def seconds(fields: dict[str, Any], name: str, default_s: float = 0.0) -> float:
    value = fields.get(name, default_s)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ConfigError(f"{name} must be a finite number of seconds of at least 0, not {value!r}")
    return float(value)


def block_ids(fields: dict[str, Any], name: str = "hash_ids") -> list[int]:
    ids = array(fields, name)
    if not all(type(one) is int for one in ids):
        raise ConfigError(f"{name} must hold whole numbers only")
    return ids

"""From what a user wrote to a setting's value: text on the command line, typed values in TOML, sizes such as "8GiB"."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dualpath.config.fields import TYPE_NAMES, Address, Entry
from dualpath.core.errors import ConfigError

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[_letter + "b"] = 1000**_power
    _UNITS[_letter + "ib"] = 1024**_power
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([a-z]*)", re.IGNORECASE)
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def from_text(entry: Entry, text: str) -> Any:
    """A flag's text as a value of the setting's type; raises ConfigError with the bare reason."""
    if entry.is_bytes:
        return _size(text)
    if entry.kind is bool:
        return _parsed(entry, text, lambda t: _WORDS[t.lower()])
    if entry.kind is Path:
        return _path(text)
    return _parsed(entry, text, _address if entry.kind is Address else entry.kind)


def from_toml(entry: Entry, value: Any) -> Any:
    """A TOML value as a value of the setting's type. Range and type are checked when the table is made."""
    if entry.many:
        return tuple(value) if isinstance(value, list) else value
    if isinstance(value, str):
        if entry.is_bytes:
            return _size(value)
        if entry.kind is Path:
            return _path(value)
    if entry.kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _parsed(entry: Entry, text: str, parse: Any) -> Any:
    try:
        return parse(text)
    except (KeyError, ValueError):
        raise ConfigError(f"must be {TYPE_NAMES[entry.kind]}, not {text!r}") from None


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    if not host or not 0 < int(port) < 65536:
        raise ValueError
    return Address(host, int(port))


def _path(text: str) -> Path:
    if not text.strip():
        raise ConfigError("must not be empty")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # "~somebody" whom there is not: as it is, as a shell has it
        return Path(text)


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    unit = match[2].lower() if match else None
    if match is None or unit not in _UNITS:
        raise ConfigError(f"must be a number of bytes such as 500000000, 512MiB or 8GB, not {text!r}")
    return round(float(match[1]) * _UNITS[unit]) if "." in match[1] else int(match[1]) * _UNITS[unit]

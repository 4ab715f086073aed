"""A configuration as the TOML that would give it, with where each value came from; keys and secrets are left out."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dualpath.config.fields import Entry, Table, entries, lists, tables

_SECRET_SETTING = re.compile(r".*_keys")
_SECRET = r"(SECRET|TOKEN|PASSWORD|KEY)"
# NAME=VALUE with such a word anywhere in its name; --argument=VALUE with it as a word: not of --max-num-batched-tokens.
_SECRET_VALUE = re.compile(rf"(?!-)[^=]*{_SECRET}[^=]*=|-[^=]*{_SECRET}(?![A-Z])[^=]*=", re.IGNORECASE)


def to_toml(config: Any, file: Path | None, flags: Mapping[tuple[str, str], Any]) -> str:
    """``config`` is what ``load_config`` made of ``file`` and ``flags``."""
    content = tomllib.loads(file.read_text(encoding="utf-8")) if file is not None else {}
    lines = [f"# defaults, then {file or 'no file'}, then flags; what is commented out is not set"]
    for name, table in tables(type(config)):
        lines += ["", f"[{name}]"]
        for entry in entries(table):
            is_in_file = entry.name in content.get(name, {})
            source = "flag" if (name, entry.name) in flags else "file" if is_in_file else "default"
            lines += _setting(entry, getattr(getattr(config, name), entry.name), source)
    for name, table in lists(type(config)):
        for item in getattr(config, name):
            lines += ["", f"[[{name}]]", *_item(table, item)]
    return "\n".join(lines) + "\n"


def _item(table: type[Table], item: Table) -> Iterator[str]:
    for entry in entries(table):
        value = getattr(item, entry.name)
        if value != entry.default:
            yield from _setting(entry, value, "file")


def _setting(entry: Entry, value: Any, source: str) -> Iterator[str]:
    if _SECRET_SETTING.fullmatch(entry.name) and value:
        yield f"# {entry.name}: {len(value)}, not shown  # {source}"
    elif value is None:
        yield f"# {entry.name}: {entry.setting.none_means or 'none'}  # {source}"
    else:
        shown = tuple(v for v in value if not _SECRET_VALUE.match(v)) if entry.many else value
        yield f"{entry.name} = {_value(shown)}  # {source}"
        if entry.many and len(shown) < len(value):
            yield f"# {entry.name}: {len(value) - len(shown)} more, not shown"


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return (
        str(value).lower()
        if isinstance(value, bool)
        else json.dumps(str(value))
        if not isinstance(value, int | float)
        else repr(value)
    )

"""Put a configuration together: defaults, then a TOML file, then flags; the first mistake is a one-line ConfigError."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from dualpath.config.fields import REQUIRED, Entry, Table, entries, lists, tables, why_wrong
from dualpath.config.values import from_text, from_toml
from dualpath.core.errors import ConfigError

R = TypeVar("R")
Key = tuple[str, str]  # (table, field)


def load_config(root: type[R], file: Path | None = None, flags: Mapping[Key, Any] | None = None) -> R:
    """Build ``root`` from its defaults, the TOML ``file`` over them, and ``flags`` over both.

    ``flags`` holds text, or a list of texts for settings that take many, for the flags that were given. Raises
    ConfigError: "file: [table] key: reason", "--flag: reason", or "[table] key: reason" for a value nobody gave.
    """
    values: dict[Key, Any] = {}
    listed: dict[str, tuple[Table, ...]] = {}
    if file is not None:
        content = _parse(file)
        listed = {name: _read_list(file, name, table, content.pop(name, [])) for name, table in lists(root)}
        for name in getattr(root, "FOREIGN", ()):
            content.pop(name, None)
        values.update(_read_file(root, file, content))
    for _, table in tables(root):
        for entry in entries(table):
            given = (flags or {}).get((entry.table, entry.name))
            if given is not None:
                values[entry.table, entry.name] = flag_value(entry, given)
    made = {name: _make_table(name, table, values) for name, table in tables(root)}
    return root(**made, **listed)


def _make_table(name: str, table: type[Table], values: Mapping[Key, Any]) -> Table:
    for entry in entries(table):
        if entry.default is REQUIRED and (name, entry.name) not in values:
            raise ConfigError(f"{entry.flag} is required (or {entry.name} in [{name}] of a --config file)")
    return table(**{key: value for (of, key), value in values.items() if of == name})


def flag_value(entry: Entry, given: Any) -> Any:
    """What a flag's text, or a list of texts, means; raises ConfigError: "--flag: reason"."""
    try:
        if entry.many and entry.setting.many == "commas":
            given = [part.strip() for part in given.split(",") if part.strip()] or [given]
        value = tuple(from_text(entry, text) for text in given) if entry.many else from_text(entry, given)
        reason = why_wrong(entry, value)
    except ConfigError as error:
        reason = str(error)
    if reason is not None:
        raise ConfigError(f"{entry.flag}: {reason}")
    return value


def _read_list(file: Path, name: str, table: type[Table], content: Any) -> tuple[Table, ...]:
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise ConfigError(f"{file}: [[{name}]] must be a list of tables, each under a line [[{name}]]")
    return tuple(_read_item(file, f"[[{name}]] {number}", table, item) for number, item in enumerate(content, start=1))


def _read_item(file: Path, where: str, table: type[Table], content: Mapping[str, Any]) -> Table:
    settings = {entry.name: entry for entry in entries(table)}
    values = {}
    for key, value in content.items():
        if key not in settings:
            raise ConfigError(f"{file}: {where} {key}: unknown key{suggestion(key, settings)}")
        values[key] = _file_value(file, settings[key], value, where)
    for entry in settings.values():
        if entry.default is REQUIRED and entry.name not in values:
            raise ConfigError(f"{file}: {where} {entry.name}: is required")
    return table(**values)


def _read_file(root: type, file: Path, tables_in_file: Mapping[str, Any]) -> dict[Key, Any]:
    known = dict(tables(root))
    values: dict[Key, Any] = {}
    for table_name, content in tables_in_file.items():
        if table_name not in known:
            kind = "table" if isinstance(content, dict) else "key outside a table"
            raise ConfigError(f"{file}: unknown {kind} [{table_name}]{suggestion(table_name, known)}")
        if not isinstance(content, dict):
            raise ConfigError(f"{file}: [{table_name}] must be a table, not {content!r}")
        settings = {entry.name: entry for entry in entries(known[table_name])}
        for key, value in content.items():
            if key not in settings:
                raise ConfigError(f"{file}: [{table_name}] {key}: unknown key{suggestion(key, settings)}")
            values[table_name, key] = _file_value(file, settings[key], value)
    return values


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None


def _file_value(file: Path, entry: Entry, given: Any, where: str | None = None) -> Any:
    try:
        value = from_toml(entry, given)
        reason = why_wrong(entry, value)
    except ConfigError as error:
        reason = str(error)
    if reason is not None:
        raise ConfigError(f"{file}: {where or f'[{entry.table}]'} {entry.name}: {reason}")
    return value


def suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""

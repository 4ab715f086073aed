"""Command-line flags generated from the tables: names, help and defaults are never written twice."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from dualpath.config.fields import REQUIRED, Entry, Table, entries, tables
from dualpath.config.load import flag_value

T = TypeVar("T", bound=Table)
_METAVARS = {"str": "TEXT", "int": "N", "float": "X", "Path": "PATH", "bool": "BOOL", "Address": "HOST:PORT"}
_UNITS = (("GiB", 2**30), ("GB", 10**9), ("MiB", 2**20), ("MB", 10**6), ("KiB", 2**10))


def add_options(parser: argparse.ArgumentParser, table: type[Table]) -> None:
    """What a command is told by flags and arguments alone. ``read_options`` makes the table of them."""
    for entry in entries(table):
        _add(parser, entry, _help(entry))


def read_options(arguments: argparse.Namespace, table: type[T]) -> T:
    """Raises ConfigError: "--flag: reason"."""
    given = [(entry, getattr(arguments, _dest(entry))) for entry in entries(table)]
    return table(**{entry.name: flag_value(entry, value) for entry, value in given if value is not None})


def add_flags(
    parser: argparse.ArgumentParser,
    root: type,
    *,
    hidden: Collection[str] = (),
    changed: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """One argument group for every table, one flag for every setting. Values stay text until ``load_config``.

    ``hidden``: settings that the command refuses with a reason of its own; they are not in the help. ``changed``: what
    the command says otherwise of settings, e.g. their help.
    """
    for name, table in tables(root):
        group = parser.add_argument_group(name, (table.__doc__ or "").split("\n")[0])
        for entry in entries(table):
            other = replace(entry, setting=replace(entry.setting, **(changed or {}).get(entry.name, {})))
            _add(group, other, argparse.SUPPRESS if entry.name in hidden else _help(other))


def given_flags(arguments: argparse.Namespace, root: type) -> Mapping[tuple[str, str], Any]:
    """The flags that were on the command line, for ``load_config``."""
    found = {}
    for name, table in tables(root):
        for entry in entries(table):
            value = getattr(arguments, _dest(entry), None)
            if value is not None:
                found[name, entry.name] = value
    return found


def _add(parser: argparse._ActionsContainer, entry: Entry, text: str) -> None:
    form: dict[str, Any] = {"help": text, "metavar": _metavar(entry)}
    if entry.is_switch:
        form = {"help": text, "action": "store_const", "const": "true"}
    elif entry.many and entry.setting.many == "words":
        form["nargs"] = "+"
    elif entry.many and entry.setting.many == "repeated":
        form["action"] = "append"
    elif entry.setting.alone is not None:
        form |= {"nargs": "?", "const": entry.setting.alone}
    if entry.setting.positional:
        if entry.default is not REQUIRED:
            form["nargs"] = "?"
        parser.add_argument(_dest(entry), **form)
    else:
        required = entry.default is REQUIRED and not entry.table  # else a file may have it
        parser.add_argument(entry.flag, dest=_dest(entry), required=required, **form)


def _dest(entry: Entry) -> str:
    return f"{entry.table}.{entry.name}" if entry.table else entry.name


def _metavar(entry: Entry) -> str:
    metavar = entry.setting.metavar
    if metavar is None and entry.setting.choices:
        metavar = "{" + ",".join(entry.setting.choices) + "}"
    one = metavar or ("SIZE" if entry.is_bytes else _METAVARS[entry.kind.__name__])
    return f"{one},..." if entry.many and entry.setting.many == "commas" else one


def _help(entry: Entry) -> str:
    if entry.default is REQUIRED:
        note = "required" if entry.table else ""  # else the usage shows it
    elif entry.default is None or entry.default == ():
        note = entry.setting.none_means and f"default: {entry.setting.none_means}"
    else:
        values = entry.default if entry.many else (entry.default,)
        note = "" if entry.is_switch else f"default: {','.join(_shown(entry, value) for value in values)}"
    return (f"{entry.setting.help} ({note})" if note else entry.setting.help).replace("%", "%%")


def _shown(entry: Entry, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if entry.is_bytes:
        for unit, num_bytes in _UNITS:
            if value % num_bytes == 0:
                return f"{value // num_bytes}{unit}"
    return f"{value:g}" if isinstance(value, float) else str(value)

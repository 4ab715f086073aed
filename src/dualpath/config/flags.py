"""Command-line flags generated from the tables: names, help and defaults are never written twice."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from typing import Any

from dualpath.config.fields import REQUIRED, Entry, entries, tables

_METAVARS: dict[str, str] = {"str": "TEXT", "int": "N", "float": "X", "Path": "PATH", "bool": "BOOL"}


def add_flags(parser: argparse.ArgumentParser, root: type, *, hidden: Collection[str] = ()) -> None:
    """One argument group for every table, one flag for every setting. Values stay text until ``load_config``.

    ``hidden``: settings that the command refuses with a reason of its own; they are not in the help.
    """
    for name, table in tables(root):
        group = parser.add_argument_group(name, (table.__doc__ or "").split("\n")[0])
        for entry in entries(table):
            group.add_argument(
                entry.flag,
                dest=_dest(name, entry.name),
                action="append" if entry.many else "store",
                metavar=_metavar(entry),
                help=argparse.SUPPRESS if entry.name in hidden else _help(entry),
            )


def given_flags(arguments: argparse.Namespace, root: type) -> Mapping[tuple[str, str], Any]:
    """The flags that were on the command line, for ``load_config``."""
    found = {}
    for name, table in tables(root):
        for entry in entries(table):
            value = getattr(arguments, _dest(name, entry.name), None)
            if value is not None:
                found[name, entry.name] = value
    return found


def _dest(table: str, field: str) -> str:
    return f"{table}.{field}"


def _metavar(entry: Entry) -> str:
    if entry.setting.metavar:
        return entry.setting.metavar
    if entry.setting.choices:
        return "{" + ",".join(entry.setting.choices) + "}"
    return "SIZE" if entry.is_bytes else _METAVARS[entry.kind.__name__]


def _help(entry: Entry) -> str:
    if entry.default is REQUIRED:
        note = "required"
    elif entry.default is None or entry.default == ():
        note = f"default: {entry.setting.none_means}"
    else:
        note = f"default: {_shown(entry)}"
    return f"{entry.setting.help} ({note})".replace("%", "%%")


def _shown(entry: Entry) -> str:
    value = entry.default
    if isinstance(value, bool):
        return str(value).lower()
    if entry.is_bytes:
        for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
            if value % 1024**power == 0:
                return f"{value // 1024**power}{unit}"
    return f"{value:g}" if isinstance(value, float) else str(value)

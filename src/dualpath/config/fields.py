"""One setting = one dataclass field that knows its help, range, choices and flag; a table checks itself when made.

A *table* is a frozen dataclass deriving from ``Table``; a *root* is a frozen dataclass whose fields are tables, or
tuples of tables of one kind.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from dualpath.core.errors import ConfigError

REQUIRED = dataclasses.MISSING


class Address(NamedTuple):
    """Where somebody listens."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Setting:
    """What a field's metadata says beyond name, type and default."""

    help: str
    minimum: float | None = None
    above: float | None = None  # exclusive minimum
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    may_be_empty: bool = False  # text of nothing but spaces
    pattern: str | None = None  # regular expression that the whole text matches
    pattern_means: str = ""  # the same in words
    flag: str | None = None  # without the dashes; None: the field's name
    none_means: str = ""  # what a default of None stands for, for --help
    metavar: str | None = None
    positional: bool = False  # an argument without a flag
    many: Literal["repeated", "words", "commas"] = "repeated"  # values: a flag each, all after one, or in one word
    alone: str | None = None  # what the flag without a value means


def setting(default: Any = REQUIRED, *, help: str, **rules: Any) -> Any:
    """A dataclass field with a ``Setting``. Without a default it is required."""
    metadata = {"setting": Setting(help, **rules)}
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Entry:
    """A field, resolved: where it lives, its plain type, and whether None or many values are allowed."""

    table: str
    name: str
    kind: type  # str, int, float, bool or Path
    optional: bool
    many: bool
    default: Any  # REQUIRED when there is none
    setting: Setting

    @property
    def flag(self) -> str:
        """What it is called on the command line."""
        if self.setting.positional:
            return self.setting.metavar or self.name
        return "--" + (self.setting.flag or self.name).replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Is there, or is not. A file's setting needs a value instead: the flag must be able to say false."""
        return self.kind is bool and not self.table

    @property
    def is_bytes(self) -> bool:
        return self.kind is int and self.name.endswith("_bytes")


class Table:
    """Base of all tables: an instance that exists has only values of the right type and range."""

    TABLE: ClassVar[str] = ""  # its name in a TOML file

    def __post_init__(self) -> None:
        for entry in entries(type(self)):
            reason = why_wrong(entry, getattr(self, entry.name))
            if reason is not None:
                where = f"[{entry.table}] {entry.name}" if entry.table else entry.flag
                raise ConfigError(f"{where}: {reason}")


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
class Options(Table):
    """What one command is told: a table that no file has. Whatever derives from it is a frozen dataclass."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)


def entries(table: type[Table]) -> tuple[Entry, ...]:
    """The settings of a table in the order in which they are written down."""
    hints = typing.get_type_hints(table)
    return tuple(_entry(table.TABLE, f, hints[f.name]) for f in dataclasses.fields(table))  # type: ignore[arg-type]


def tables(root: type) -> Iterator[tuple[str, type[Table]]]:
    """(field name, table class) of a root; the field's name is the table's."""
    hints = typing.get_type_hints(root)
    for field in dataclasses.fields(root):
        if typing.get_origin(hints[field.name]) is not tuple:
            yield field.name, hints[field.name]


def lists(root: type) -> Iterator[tuple[str, type[Table]]]:
    """(field name, table class) of a root's fields that hold any number of tables: ``[[name]]`` in a file, no flags."""
    hints = typing.get_type_hints(root)
    for field in dataclasses.fields(root):
        if typing.get_origin(hints[field.name]) is tuple:
            yield field.name, typing.get_args(hints[field.name])[0]


def why_wrong(entry: Entry, value: Any) -> str | None:
    """The reason why ``value`` cannot be this setting's, or None when it can."""
    if value is None:
        return None if entry.optional else "is required"
    if not entry.many:
        return _why_wrong_one(entry, value)
    if not isinstance(value, tuple):
        return f"must be a list of strings, not {value!r}"
    return next((reason for item in value if (reason := _why_wrong_one(entry, item))), None)


def _entry(table: str, field: dataclasses.Field[Any], hint: Any) -> Entry:
    arguments = typing.get_args(hint)
    many = typing.get_origin(hint) is tuple
    optional = isinstance(hint, types.UnionType)
    kind = next(a for a in arguments if a is not type(None)) if many or optional else hint
    return Entry(table, field.name, kind, optional, many, field.default, field.metadata["setting"])


def _why_wrong_one(entry: Entry, value: Any) -> str | None:
    if not _is_kind(entry.kind, value):
        return f"must be {TYPE_NAMES[entry.kind]}, not {value!r}"
    rules = entry.setting
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, not {value}"
    if rules.choices and value not in rules.choices:
        return f"must be one of {', '.join(rules.choices)}, not {value!r}"
    if rules.pattern and not re.fullmatch(rules.pattern, value):
        return f"must be {rules.pattern_means}, not {value!r}"
    if isinstance(value, str) and not value.strip() and not rules.may_be_empty:
        return "must not be empty"
    return _why_out_of_range(rules, value)


def _why_out_of_range(rules: Setting, value: Any) -> str | None:
    if rules.minimum is not None and value < rules.minimum:
        return f"must be at least {rules.minimum:g}, not {value}"
    if rules.above is not None and value <= rules.above:
        return f"must be more than {rules.above:g}, not {value}"
    if rules.maximum is not None and value > rules.maximum:
        return f"must be at most {rules.maximum:g}, not {value}"
    return None


def _is_kind(kind: type, value: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


TYPE_NAMES: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
    Address: "HOST:PORT",
}

"""Fields of a config.json, checked as they are read: every error names file, field, value and reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from dualpath.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Fields:
    """One JSON object and the name it goes by in messages. A field that is null counts as absent."""

    where: str
    data: Mapping[str, Any]

    def has(self, name: str) -> bool:
        return self.data.get(name) is not None

    def count(self, *names: str, default: int | None = None, minimum: int = 1) -> int:
        """A whole number under the first of ``names`` that is there; required without a default."""
        name = next((one for one in names if self.has(one)), None)
        if name is None:
            if default is None:
                raise ConfigError(f"{self.where}: {names[0]} is missing")
            return default
        value = self.data[name]
        if not isinstance(value, int) or isinstance(value, bool):
            self.refuse(name, "must be a whole number")
        if value < minimum:
            self.refuse(name, f"must be at least {minimum}")
        return int(value)

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.data.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(name, "must be true or false")
        return value

    def sequence(self, name: str) -> list[Any] | None:
        value = self.data.get(name)
        if value is not None and not isinstance(value, list):
            self.refuse(name, "must be a list")
        return value

    def refuse(self, name: str, reason: str) -> NoReturn:
        shown = repr(self.data.get(name))
        raise ConfigError(f"{self.where}: {name} = {shown if len(shown) <= 80 else shown[:77] + '...'}: {reason}")

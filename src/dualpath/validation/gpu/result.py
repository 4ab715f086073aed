"""What a step of the check has found: verdicts that hold or do not, tables, and what is to be said beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dualpath.core.errors import DualPathError


class SkipStepError(DualPathError):
    """The step has nothing to run on here; the text says what is missing."""


@dataclass(slots=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: list[list[Any]] = field(default_factory=list)


@dataclass(slots=True)
class Verdict:
    """``passed`` is None where there is nothing to hold it against."""

    what: str
    value: Any
    passed: bool | None = None


@dataclass(slots=True)
class Findings:
    """Filled while the step runs: what an error cuts short is kept."""

    verdicts: list[Verdict] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def verdict(self, what: str, value: Any, passed: bool | None = None) -> None:
        self.verdicts.append(Verdict(what, value, passed))

    def table(self, title: str, *columns: str) -> Table:
        self.tables.append(Table(title, columns))
        return self.tables[-1]


@dataclass(slots=True)
class Rates:
    """Of this box, bytes per second, measured by the first steps: what later ones are held against."""

    memory: float = 0.0  # the device's own, read and write counted
    to_device: float = 0.0  # from pinned host memory


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""What an experiment reports: a row for each published number, and figures of the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One number. ``paper`` None: the paper has none. ``ours`` None: it could not be measured; ``note`` says why."""

    id: str  # experiment and number, e.g. "fig8.mean"
    what: str
    unit: str  # "" for ratios
    paper: float | None
    ours: float | None
    fitted: bool = False  # a constant was chosen with a view to this very number
    note: str = ""

    @property
    def rel_error(self) -> float | None:
        """Of ours against the paper's; None where there is no such thing."""
        if self.paper is None or self.ours is None or self.paper == 0:
            return None
        return self.ours / self.paper - 1

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        note, fitted = fields.pop("note"), fields.pop("fitted")
        return {**fields, "rel_error": self.rel_error, "fitted": fitted, "note": note}


Series = Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Bars:
    """Published numbers on the left, simulated ones on the right, under the same names."""

    title: str
    unit: str
    paper: Mapping[str, float]
    ours: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Lines:
    """Curves over x; ``paper`` holds what is published of them, often a single point."""

    title: str
    x_unit: str
    y_unit: str
    paper: Series
    ours: Series
    limit: float | None = None  # a horizontal line: a service level
    y_top: float | None = None  # where the axis ends, for curves that explode


@dataclass(frozen=True, slots=True)
class Report:
    """What came out of one experiment."""

    rows: Sequence[Row]
    figures: Sequence[Bars | Lines] = ()
    text: str = ""  # how it was run, and how to read it


def bars_of(title: str, unit: str, rows: Sequence[Row]) -> Bars:
    """A figure of rows that have both numbers."""
    both = [row for row in rows if row.paper is not None and row.ours is not None]
    return Bars(
        title,
        unit,
        {row.what: row.paper for row in both if row.paper is not None},
        {row.what: row.ours for row in both if row.ours is not None},
    )

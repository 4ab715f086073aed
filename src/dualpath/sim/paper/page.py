"""The reproduction as one HTML page without any external resource: a summary, then paper and ours side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from dualpath.report.page import page
from dualpath.report.svg import Mark, lines, number, stacked_bars
from dualpath.sim.paper.constants import CONSTANTS, Constant
from dualpath.sim.paper.experiment import Experiment
from dualpath.sim.paper.rows import Bars, Lines, Report, Row, Series

NEAR = 0.05  # relative error that counts as reproduced


def render(reports: Sequence[tuple[Experiment, Report]], is_full: bool) -> str:
    return page(
        "paper.html",
        title="DualPath: the paper, simulated",
        size="at full size" if is_full else "at reduced size, see each row's note",
        summary=_summary([row for _, report in reports for row in report.rows]),
        sections=[_section(one, report) for one, report in reports],
        constants=[(model, list(map(_constant, constants))) for model, constants in CONSTANTS.items()],
    )


def _summary(rows: Sequence[Row]) -> str:
    """How many numbers came out, counting apart those that constants were fitted to."""
    known = [(row, row.rel_error) for row in rows]
    errors = [(row.fitted, abs(error)) for row, error in known if error is not None]
    if not errors:
        return ""
    parts = []
    for is_fitted, name in ((False, "not used for any fit"), (True, "constants were fitted to")):
        group = [error for fitted, error in errors if fitted is is_fitted]
        near = sum(error <= NEAR for error in group)
        parts.append(f"of {len(group)} published numbers {name}, {near} come out within {NEAR:.0%}")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]


def _section(experiment: Experiment, report: Report) -> dict[str, Any]:
    """A note that several rows have in common stands once, under the last of them."""
    following = [row.note for row in report.rows[1:]] + [""]
    notes = [row.note if row.note != after else "" for row, after in zip(report.rows, following, strict=True)]
    figures = groupby(report.figures, lambda figure: bool(figure.paper))
    return {
        "title": experiment.title,
        "text": report.text,
        "rows": list(map(_line, report.rows, notes)),
        "figures": [(has_paper, list(map(_figure, group))) for has_paper, group in figures],
    }


def _line(row: Row, note: str) -> dict[str, Any]:
    error = row.rel_error
    return {
        "what": row.what,
        "unit": row.unit,
        "paper": _value(row.paper),
        "ours": _value(row.ours),
        "error": "-" if error is None else f"{error:+.1%}",
        "is_off": error is not None and abs(error) > NEAR,
        "fitted": "yes" if row.fitted else "no",
        "note": note,
    }


def _value(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else ("-" if value < 0 else "") + number(abs(value))


def _figure(figure: Bars | Lines) -> dict[str, Any]:
    """Paper and ours are shown side by side; what the paper has no numbers for, two in a row."""
    is_bars = isinstance(figure, Bars)
    sides = {name: _side(figure, values) for name, values in (("paper", figure.paper), ("ours", figure.ours))}
    return {"title": figure.title, "is_bars": is_bars, **sides}


def _side(figure: Bars | Lines, values: Any) -> dict[str, Any]:
    if isinstance(figure, Bars):
        return {"drawing": _bars(figure, values), "legend": []}
    return {"drawing": _lines(figure, values), "legend": list(values)}


def _bars(figure: Bars, values: Mapping[str, float]) -> str:
    if not values:
        return ""
    top = max([*figure.paper.values(), *figure.ours.values()])
    marks = [Mark(top, "")] if figure.paper else []  # the same scale on both sides
    rows = {name: [value] for name, value in values.items()}
    return stacked_bars(rows, [figure.title], figure.unit, marks, label=figure.title)


def _lines(figure: Lines, series: Series) -> str:
    every = [point for side in (figure.paper, figure.ours) for line in side.values() for point in line]
    x_top, y_top = max(x for x, _ in every), figure.y_top or max(y for _, y in every)
    limit = None if figure.limit is None else Mark(figure.limit, f"{figure.limit:g}")
    return lines(
        series,
        figure.x_unit,
        figure.y_unit,
        limit=limit,
        points=True,
        x_top=x_top,
        y_top=y_top,
        height=260,
        label=figure.title,
    )


def _constant(one: Constant) -> list[str]:
    value = one.value if isinstance(one.value, str) else f"{one.value:.4g}"
    return [one.key, value, one.unit, "yes" if one.fitted else "no", one.meaning, one.source]

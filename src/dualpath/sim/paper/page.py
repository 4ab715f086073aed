"""The reproduction as one HTML page without any external resource: a summary, then paper and ours side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from dualpath.bench.report_css import CSS
from dualpath.bench.svg import Mark, lines, number, stacked_bars
from dualpath.sim.paper.constants import CONSTANTS, Constant
from dualpath.sim.paper.experiment import Experiment
from dualpath.sim.paper.rows import Bars, Lines, Report, Row, Series

NEAR = 0.05  # relative error that counts as reproduced
EXTRA_CSS = """
body{max-width:1100px}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:12px}
.pair h3{font-size:.9rem;margin:.2em 0;color:var(--dim);font-weight:600}
.pair figure{margin:0}
td.note{text-align:left;white-space:normal;color:var(--dim);padding-top:0}
td.what{text-align:left;white-space:normal}
tr.noted td{border-bottom:none}
.bars .mark{display:none}
.paper.bars rect{fill:var(--k0)} .ours.bars rect{fill:var(--k3)}
tr.off td.error{color:var(--mark);font-weight:600}
@media (max-width:640px){.pair{grid-template-columns:1fr}}
@media print{section{break-inside:auto} figure{break-inside:avoid}}
"""


def render(reports: Sequence[tuple[Experiment, Report]], is_full: bool) -> str:
    rows = [row for _, report in reports for row in report.rows]
    body = "".join(f"<section>{_section(one, report)}</section>" for one, report in reports)
    size = "at full size" if is_full else "at reduced size, see each row's note"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>DualPath: the paper, simulated</title><style>{CSS}{EXTRA_CSS}</style></head>"
        f"<body><h1>The paper's evaluation, simulated {size}</h1>{_summary(rows)}{body}"
        f"<section>{_constants()}</section></body></html>\n"
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
    return f"<p>{escape(text[:1].upper() + text[1:])}. Source of all published numbers: arXiv 2602.21548.</p>"


def _section(experiment: Experiment, report: Report) -> str:
    text = f'<p class="dim">{escape(report.text)}</p>' if report.text else ""
    figures = "".join(_figures(report.figures))
    return f"<h2>{escape(experiment.title)}</h2>{text}{_table(report.rows)}{figures}"


def _table(rows: Sequence[Row]) -> str:
    """A note that several rows have in common stands once, under the last of them."""
    head = "".join(f"<th>{name}</th>" for name in ("what", "paper", "ours", "error", "fitted"))
    following = [row.note for row in rows[1:]] + [""]
    body = "".join(
        _line(row, row.note if row.note != after else "") for row, after in zip(rows, following, strict=True)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _line(row: Row, note: str) -> str:
    error = row.rel_error
    is_off = error is not None and abs(error) > NEAR
    kinds = " ".join(name for name, holds in (("off", is_off), ("noted", bool(note))) if holds)
    unit = f' <span class="dim">{escape(row.unit)}</span>' if row.unit else ""
    line = (
        f'<tr class="{kinds}"><td class="what">{escape(row.what)}{unit}</td>'
        f"<td>{_value(row.paper)}</td><td>{_value(row.ours)}</td>"
        f'<td class="error">{"-" if error is None else f"{error:+.1%}"}</td>'
        f"<td>{'yes' if row.fitted else 'no'}</td></tr>"
    )
    return line + (f'<tr><td class="note" colspan="5">{escape(note)}</td></tr>' if note else "")


def _value(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else ("-" if value < 0 else "") + number(abs(value))


def _figures(figures: Sequence[Bars | Lines]) -> Iterator[str]:
    """Paper and ours side by side; what the paper has no numbers for, two in a row."""
    for has_paper, group in groupby(figures, lambda figure: bool(figure.paper)):
        if has_paper:
            yield from map(_both, group)
        else:
            yield f'<div class="pair">{"".join(map(_alone, group))}</div>'


def _both(figure: Bars | Lines) -> str:
    sides = f"{_side(figure, figure.paper, 'paper')}{_side(figure, figure.ours, 'ours')}"
    return f'<figure><figcaption>{escape(figure.title)}</figcaption><div class="pair">{sides}</div></figure>'


def _alone(figure: Bars | Lines) -> str:
    return f"<figure><figcaption>{escape(figure.title)}</figcaption>{_side(figure, figure.ours, 'ours')}</figure>"


def _side(figure: Bars | Lines, values: Any, name: str) -> str:
    if isinstance(figure, Bars):
        return f'<div class="bars {name}"><h3>{name}</h3>{_bars(figure, values)}</div>'
    return f'<div class="{name}"><h3>{name}</h3>{_lines(figure, values)}</div>'


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
    drawing = lines(
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
    return drawing + _legend(list(series))


def _legend(names: Sequence[str]) -> str:
    items = "".join(f'<span><i class="c{i % 8}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<p class="legend">{items}</p>'


def _constants() -> str:
    head = "".join(f"<th>{name}</th>" for name in ("setting", "value", "unit", "fitted", "meaning", "source"))
    out = "<h2>Constants</h2><p class='dim'>One value for each model, in all experiments.</p>"
    for model, constants in CONSTANTS.items():
        body = "".join(_constant(one) for one in constants)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        out += f'<h3>{escape(model)}</h3><div class="scroll">{table}</div>'
    return out


def _constant(one: Constant) -> str:
    value = one.value if isinstance(one.value, str) else f"{one.value:.4g}"
    fitted = "yes" if one.fitted else "no"
    return (
        f"<tr><td>{escape(one.key)}</td><td>{escape(value)}</td><td>{escape(one.unit)}</td><td>{fitted}</td>"
        f'<td class="note">{escape(one.meaning)}</td><td class="note">{escape(one.source)}</td></tr>'
    )

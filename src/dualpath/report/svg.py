"""Small SVG charts for reports: horizontal bars, stacked bars, lines. Colours are the page's CSS classes, c0 to c7."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 640  # user units; the page scales it to its column
ROW, BAR, TOP, LABEL = 48, 18, 8, 18  # a row is its name, and the bar below it
MARK_ROW, AXIS = 22, 42


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at a value, with what it means."""

    value: float
    text: str


def ticks(top: float, count: int = 5) -> list[float]:
    """Round numbers from 0 up to at least ``top``."""
    if not top > 0:
        return [0.0, 1.0]
    rough = top / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def number(value: float) -> str:
    """Three significant digits, no exponents."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(digits, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def stacked_bars(
    rows: Mapping[str, Sequence[float]],
    parts: Sequence[str],
    unit: str,
    marks: Sequence[Mark] = (),
    *,
    label: str = "",
    show_sum: bool = True,
) -> str:
    """A bar for each row, cut into ``parts``; its sum stands beside it. One part makes plain bars."""
    left, room = 10.0, 70.0  # room for the sum
    peak = max([sum(values) for values in rows.values()] + [mark.value for mark in marks])
    scale = ticks(peak)
    x = _scale(scale[-1], left, WIDTH - left - room)
    head = TOP + MARK_ROW * len(marks)
    bottom = head + ROW * len(rows)
    out = [_grid(scale, x, head, bottom, unit)]
    for index, (name, values) in enumerate(rows.items()):
        y = head + ROW * index + LABEL + 3
        out.append(_text(left, y - 5, name, "start"))
        start, plain = 0.0, len(parts) == 1
        for part, value in enumerate(values):
            colour = index if plain else part
            title = f"{name}: {number(value)} {unit}" if plain else f"{name}, {parts[part]}: {number(value)} {unit}"
            out.append(_bar(x(start), y, max(0.0, x(start + value) - x(start)), f"c{colour % 8}", title))
            start += value
        if show_sum:
            out.append(_text(x(start) + 6, y + 14, number(start), "start", "value"))
    # The leftmost text stands highest: the lines of the others begin below it.
    ordered = sorted(marks, key=lambda mark: mark.value)
    out += [_mark(mark, x(mark.value), TOP + 12 + MARK_ROW * i, bottom) for i, mark in enumerate(ordered)]
    return _svg(bottom + AXIS, out, label)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_unit: str,
    y_unit: str,
    *,
    limit: Mark | None = None,
    points: bool = False,
    x_top: float | None = None,
    y_top: float | None = None,
    height: int = 220,
    label: str = "",
) -> str:
    """A line for each series through (x, y); ``limit`` is a horizontal line."""
    left, right, bottom = 56.0, 14.0, float(AXIS)
    xs = [x for line in series.values() for x, _ in line]
    ys = [y for line in series.values() for _, y in line] + ([limit.value] if limit else [])
    x_scale, y_scale = ticks(x_top or max(xs, default=1.0), 6), ticks(y_top or max(ys, default=1.0), 4)
    x = _scale(x_scale[-1], left, WIDTH - left - right)
    low = height - bottom

    def y(value: float) -> float:
        return low - value / y_scale[-1] * (low - 30)

    out = [
        f'<line class="grid" x1="{left:g}" x2="{WIDTH - right:g}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>' for t in y_scale
    ]
    out += [_text(left - 6, y(t) + 4, number(t), "end", "tick") for t in y_scale]
    out += [_text(x(t), low + 17, number(t), "middle", "tick") for t in x_scale]
    out.append(_text(WIDTH - right, low + 36, x_unit, "end", "tick") + _text(4, 12, y_unit, "start", "tick"))
    if limit is not None:
        at = f"{y(limit.value):.1f}"
        out.append(f'<line class="mark" x1="{left:g}" x2="{WIDTH - right:g}" y1="{at}" y2="{at}"/>')
        out.append(_text(WIDTH - right, y(limit.value) - 5, limit.text, "end", "marktext"))
    for index, (name, line) in enumerate(series.items()):
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in line)
        out.append(f'<polyline class="s{index % 8}" points="{path}"><title>{escape(name)}</title></polyline>')
        for px, py in line if points else ():
            title = f"<title>{escape(name)}: {number(py)} {escape(y_unit)} at {number(px)}</title>"
            out.append(f'<circle class="c{index % 8}" cx="{x(px):.1f}" cy="{y(py):.1f}" r="4">{title}</circle>')
    return _svg(height, out, label)


def _scale(top: float, left: float, width: float) -> Callable[[float], float]:
    return lambda value: left + value / top * width


def _grid(scale: Sequence[float], x: Callable[[float], float], top: float, bottom: float, unit: str) -> str:
    out = []
    for tick in scale:
        out.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top:g}" y2="{bottom:g}"/>')
        out.append(_text(x(tick), bottom + 17, number(tick), "middle", "tick"))
    out.append(_text(x(scale[-1]), bottom + 36, unit, "end", "tick"))
    return "".join(out)


def _bar(x: float, y: float, width: float, colour: str, title: str) -> str:
    return (
        f'<rect class="{colour}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _mark(mark: Mark, x: float, text_y: float, bottom: float) -> str:
    is_right = x > WIDTH / 2
    anchor, shift = ("end", -5) if is_right else ("start", 5)
    line = f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{text_y - 10:g}" y2="{bottom:g}"/>'
    return line + _text(x + shift, text_y, mark.text, anchor, "marktext")


def _text(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    body = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label, quote=True)}">{body}</svg>'

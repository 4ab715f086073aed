"""Draws which room imports which, from the source: ``python -m tests.draw_imports`` writes docs/imports.svg anew."""

from __future__ import annotations

from itertools import pairwise
from math import fsum
from pathlib import Path

from tests.imports import room_imports, without_shortcuts

PICTURE = Path(__file__).parents[1] / "docs" / "imports.svg"
ROW, BOX_W, BOX_H, EDGE = 56, 84, 24, 12  # user units
STYLE = (
    "svg{font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif} .ground{fill:#fff}"
    " rect.room{fill:#f6f7f9;stroke:#5c6470} text{fill:#1b1f24;font-size:12px;text-anchor:middle}"
    " path{fill:none;stroke:#0b6fb8;stroke-width:1.2;marker-end:url(#tip)} marker path{fill:#0b6fb8;stroke:none}"
)
TIP = '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
TIP += '<path d="M0 0L8 4L0 8z"/></marker>'
SWEEPS = 24

Graph = dict[str, set[str]]
Bend = tuple[str, str, int]  # where an edge passes a row: both its ends, and the row
Spot = str | Bend


def drawing() -> str:
    """A whole SVG file: an arrow goes down to what is imported; what follows from other arrows is left out."""
    graph = without_shortcuts(room_imports())
    heights: dict[str, int] = {}
    for room in graph:
        _height(graph, room, heights)
    chains = [_chain(one, other, heights) for one in sorted(graph) for other in sorted(graph[one])]
    rows = _rows(heights, chains)
    tall = 2 * EDGE + BOX_H + ROW * (len(rows) - 1)
    xs = [x for row in rows for x in row.values()]
    left, wide = min(xs) - BOX_W / 2 - EDGE, round(max(xs) - min(xs) + BOX_W + 2 * EDGE)
    at = {spot: (x - left, tall - EDGE - BOX_H / 2 - ROW * i) for i, row in enumerate(rows) for spot, x in row.items()}
    arrows = [_arrow([at[spot] for spot in chain]) for chain in chains]
    boxes = [_box(spot, *at[spot]) for spot in sorted(heights)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" width="{wide}" height="{tall}">'
        f'<style>{STYLE}</style>{TIP}<rect class="ground" width="{wide}" height="{tall}"/>\n'
        + "\n".join([*arrows, *boxes])
        + "\n</svg>\n"
    )


def _height(graph: Graph, room: str, heights: dict[str, int]) -> int:
    """The longest way down from it."""
    if room not in heights:
        heights[room] = 1 + max((_height(graph, other, heights) for other in graph[room]), default=-1)
    return heights[room]


def _chain(one: str, other: str, heights: dict[str, int]) -> list[Spot]:
    """An edge from row to row."""
    return [one, *((one, other, row) for row in range(heights[one] - 1, heights[other], -1)), other]


def _rows(heights: dict[str, int], chains: list[list[Spot]]) -> list[dict[Spot, float]]:
    """The spots of each row, from below, and their x: each near the middle of its others, so that few edges cross."""
    near: dict[Spot, list[Spot]] = {}
    for chain in chains:
        for one, other in pairwise(chain):
            near.setdefault(one, []).append(other)
            near.setdefault(other, []).append(one)
    rows: list[dict[Spot, float]] = [{} for _ in range(max(heights.values()) + 1)]
    for spot in sorted(near, key=str):
        rows[heights[spot] if isinstance(spot, str) else spot[2]][spot] = 0.0
    for _ in range(SWEEPS):
        for row in [*rows, *rows[::-1]]:
            x = {spot: place for other in rows for spot, place in other.items()}
            middles = {spot: fsum(x[other] for other in near[spot]) / len(near[spot]) for spot in row}
            order = sorted(row, key=lambda spot: middles[spot])
            row.update(_apart(order, [middles[spot] for spot in order]))
    return rows


def _apart(order: list[Spot], wanted: list[float]) -> dict[Spot, float]:
    """As near to where they want to be as is possible without touching: the mean of pushing right and pushing left."""
    halves = [BOX_W / 2 + 4 if isinstance(spot, str) else 5 for spot in order]
    right, left = list(wanted), list(wanted)
    for i in range(1, len(order)):
        right[i] = max(right[i], right[i - 1] + halves[i - 1] + halves[i])
    for i in reversed(range(len(order) - 1)):
        left[i] = min(left[i], left[i + 1] - halves[i + 1] - halves[i])
    return {spot: (one + other) / 2 for spot, one, other in zip(order, right, left, strict=True)}


def _arrow(points: list[tuple[float, float]]) -> str:
    (x, y), *bends, (to_x, to_y) = points
    ways = [(x, y + BOX_H / 2), *bends, (to_x, to_y - BOX_H / 2)]
    path = f"M{ways[0][0]:.0f} {ways[0][1]:.0f}"
    for (from_x, from_y), (x, y) in pairwise(ways):
        middle = (from_y + y) / 2
        path += f"C{from_x:.0f} {middle:.0f} {x:.0f} {middle:.0f} {x:.0f} {y:.0f}"
    return f'<path d="{path}"/>'


def _box(room: str, x: float, y: float) -> str:
    left, top = x - BOX_W / 2, y - BOX_H / 2
    return (
        f'<rect class="room" x="{left:.0f}" y="{top:.0f}" width="{BOX_W}" height="{BOX_H}" rx="4"/>'
        f'<text x="{x:.0f}" y="{y + 4:.0f}">{room}</text>'
    )


if __name__ == "__main__":
    PICTURE.write_text(drawing(), encoding="utf-8")

"""The highest rate of arriving agents that a system serves within its limits: doubling first, then bisection."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

Point = dict[str, Any]
Measure = Callable[[float], Awaitable[Point]]


async def find_capacity(measure: Measure, low: float, high: float, tolerance: float) -> list[Point]:
    """Points measured on the way, by rate. The bounds come as close as (1 + ``tolerance``); every rate is tried once.

    Assumes that a rate beyond one that failed fails too. ``low`` itself failing ends the search: there is no capacity
    in this range; ``high`` holding ends it too.
    """
    points: list[Point] = []

    async def holds(rate: float) -> bool:
        points.append(await measure(rate))
        return bool(points[-1]["meets_slo"])

    good, bad = None, None
    rate = low
    while bad is None and (good is None or good < high):
        if await holds(rate):
            good, rate = rate, min(2 * rate, high)
        else:
            bad = rate
    while good is not None and bad is not None and bad > good * (1 + tolerance):
        middle = math.sqrt(good * bad)
        good, bad = (middle, bad) if await holds(middle) else (good, middle)
    return sorted(points, key=lambda point: float(point["aps"]))


def capacity_aps(points: list[Point]) -> float | None:
    """The highest rate below which everything that was tried held."""
    best = None
    for point in sorted(points, key=lambda one: float(one["aps"])):
        if not point["meets_slo"]:
            break
        best = float(point["aps"])
    return best

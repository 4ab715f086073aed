"""When group leaders ask for work: each every ``interval_s``, one after the other, so that no two ask at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dualpath.sim.requests.placing import Scope


class FetchTimes:
    """Leader i asks at (k * n + i) / n * interval; nothing happens when nobody waits, so those times need no events."""

    def __init__(self, scopes: Sequence[Scope], num_leaders: int, interval_s: float) -> None:
        self._scopes = list(scopes)
        self.step_s = interval_s / num_leaders  # from one leader's fetch to the next one's
        self._last = -1  # tick of the fetch before

    def next_after(self, earliest_s: float) -> tuple[float, Scope] | None:
        """The first leader with an engine that is not overloaded, from ``earliest_s`` on; None: there is none."""
        if not self.step_s:
            return (earliest_s, self._scopes[0]) if self._scopes[0].is_open else None
        scopes, count = self._scopes, len(self._scopes)
        first = max(self._last + 1, math.ceil(earliest_s / self.step_s))
        for tick in range(first, first + count):
            scope = scopes[tick % count]
            if scope.is_open:
                return max(earliest_s, tick * self.step_s), scope
        return None

    def fetched(self, now_s: float) -> None:
        """A fetch happens now."""
        if self.step_s:
            self._last = max(self._last, round(now_s / self.step_s))

"""Events and the one order in which they happen: by time, then by the order in which they were made.

An event is a small object that changes the simulated world when its moment comes and returns the events that follow.
Nothing else moves time, so the same start gives the same history on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush, heapreplace
from typing import Final


class Event:
    """Something that happens at ``time_s``. Subclasses say what."""

    __slots__ = ("time_s",)

    def __init__(self, time_s: float) -> None:
        self.time_s = time_s

    def fire(self) -> Sequence[Event]:
        """Change the world; what follows from it, none of it earlier than now."""
        raise NotImplementedError


Events = Sequence[Event]
NOTHING: Final[Events] = ()


class Agenda:
    """What is still to happen."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_fired = 0
        self._heap: list[tuple[float, int, Event]] = []
        self._sequence = 0

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.time_s < self.now_s:
                raise ValueError(
                    f"{type(event).__name__} at {event.time_s} s belongs to the past: it is {self.now_s} s"
                )
            self._sequence += 1
            heappush(self._heap, (event.time_s, self._sequence, event))

    def run(self, until_s: float = math.inf) -> None:
        """Fire events in order, up to and including those at ``until_s``. Raises ValueError for one in the past.

        An event's place in the heap is its first follower's: that takes half the work of leaving and entering.
        """
        heap, push, pop, replace = self._heap, heappush, heappop, heapreplace
        now_s, sequence, fired = self.now_s, self._sequence, 0
        while heap:
            time_s, _, event = heap[0]
            if time_s > until_s:
                now_s = until_s
                break
            if time_s < now_s:
                raise ValueError(f"{type(event).__name__} at {time_s} s belongs to the past: it is {now_s} s")
            now_s = time_s
            fired += 1
            is_there = True
            for follower in event.fire():
                sequence += 1
                if is_there:
                    replace(heap, (follower.time_s, sequence, follower))
                    is_there = False
                else:
                    push(heap, (follower.time_s, sequence, follower))
            if is_there:
                pop(heap)
        self.now_s, self._sequence = now_s, sequence
        self.num_fired += fired

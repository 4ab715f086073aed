"""The least loaded of many, in O(log n) for each change and each choice: of decode groups, and of prefill engines."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush, heapreplace


class LeastLoaded:
    """Names with a load each, which is never negative.

    A heap has an entry for every name with at most the load that it has now: what was added since is found out when
    the entry comes to the top, what was taken away brings a new entry, and the old one means nothing any more.
    """

    def __init__(self, loads: Mapping[str, int] | None = None) -> None:
        self._names: list[str] = []
        self._index: dict[str, int] = {}
        self._loads: list[int] = []
        self._entered: list[int] = []  # the load of each name's entry that counts; -1: the name has gone
        self._heap: list[tuple[int, int]] = []
        for name, load in (loads or {}).items():
            self.insert(name, load)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __getitem__(self, name: str) -> int:
        return self._loads[self._index[name]]

    @property
    def names(self) -> list[str]:
        """In order."""
        return list(self._index)

    def insert(self, name: str, load: int) -> None:
        """A new name, the last in order."""
        index = self._index[name] = len(self._names)
        self._names.append(name)
        self._loads.append(load)
        self._entered.append(load)
        heappush(self._heap, (load, index))

    def remove(self, name: str) -> None:
        self._entered[self._index.pop(name)] = -1

    def add(self, name: str, load: int) -> None:
        """So much more, or less if negative."""
        self._set(self._index[name], self._loads[self._index[name]] + load)

    def set(self, name: str, load: int) -> None:
        self._set(self._index[name], load)

    def choose(self) -> str | None:
        """The name with the least load; of equal ones the first; None when there is none."""
        heap, loads, entered = self._heap, self._loads, self._entered
        while heap:
            known, index = heap[0]
            now = loads[index]
            if known != entered[index]:
                heappop(heap)
            elif now == known:
                return self._names[index]
            else:
                entered[index] = now
                heapreplace(heap, (now, index))
        return None

    def _set(self, index: int, load: int) -> None:
        self._loads[index] = load
        if load < self._entered[index]:
            self._entered[index] = load
            heappush(self._heap, (load, index))
            if len(self._heap) > 4 * len(self._names):
                self._heap = [(self._entered[i], i) for i in self._index.values()]
                heapify(self._heap)

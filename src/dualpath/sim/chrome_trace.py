"""Spans of simulated time as a Chrome trace (chrome://tracing, Perfetto): forwards by engine, phases by agent."""

from __future__ import annotations

import json
from typing import Any

MAX_SPANS = 500_000  # beyond, a viewer gives up; the beginning of a run is kept


class ChromeTrace:
    """One process row for each node, one thread row for each engine or agent."""

    def __init__(self, max_spans: int = MAX_SPANS) -> None:
        self._spans: list[dict[str, Any]] = []
        self._processes: dict[str, int] = {}
        self._threads: dict[tuple[str, str], int] = {}
        self._max_spans = max_spans

    def span(self, process: str, row: str, name: str, start_s: float, end_s: float, args: dict[str, Any]) -> None:
        if len(self._spans) >= self._max_spans or end_s <= start_s:
            return
        pid = self._processes.setdefault(process, len(self._processes) + 1)
        tid = self._threads.setdefault((process, row), len(self._threads) + 1)
        times = {"ts": start_s * 1e6, "dur": (end_s - start_s) * 1e6}
        self._spans.append({"ph": "X", "name": name, "pid": pid, "tid": tid, **times, "args": args})

    def text(self) -> str:
        """The file's, JSON."""
        names = [
            {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
            for name, pid in self._processes.items()
        ]
        names += [
            {"ph": "M", "name": "thread_name", "pid": self._processes[process], "tid": tid, "args": {"name": row}}
            for (process, row), tid in self._threads.items()
        ]
        return json.dumps({"traceEvents": [*names, *self._spans], "displayTimeUnit": "ms"}) + "\n"

"""Spans of compute and transfers as a Chrome trace (chrome://tracing, Perfetto), to see what overlaps with what."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any


class ChromeTrace:
    """Collects complete events; any thread. One process row per engine, one thread row per track."""

    def __init__(self, max_events: int = 500_000) -> None:
        self._events: list[dict[str, Any]] = []
        self._rows: dict[tuple[str, str], tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._max_events = max_events

    def span(
        self, process: str, track: str, name: str, start_s: float, end_s: float, args: dict[str, Any] | None = None
    ) -> None:
        """Add ``[start_s, end_s)`` (monotonic seconds). Stops at ``max_events``: a trace never fills memory."""
        with self._lock:
            if len(self._events) >= self._max_events:
                return
            pid, tid = self._row(process, track)
            event = {
                "ph": "X",
                "name": name,
                "pid": pid,
                "tid": tid,
                "ts": start_s * 1e6,
                "dur": (end_s - start_s) * 1e6,
            }
            self._events.append(event | {"args": args} if args else event)

    def _row(self, process: str, track: str) -> tuple[int, int]:
        if (process, track) not in self._rows:
            pids = {p: pid for (p, _), (pid, _) in self._rows.items()}
            self._rows[process, track] = (pids.get(process, len(pids) + 1), len(self._rows) + 1)
        return self._rows[process, track]

    def write(self, path: Path) -> None:
        with self._lock:
            meta: list[dict[str, Any]] = []
            for (process, track), (pid, tid) in self._rows.items():
                meta.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": process}})
                meta.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": track}})
            path.write_text(json.dumps({"traceEvents": meta + self._events, "displayTimeUnit": "ms"}))

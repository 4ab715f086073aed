"""Errors that were logged with a traceback: bugs, in our code or in what it calls."""

from __future__ import annotations

import logging


class Tracebacks(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._lines: list[str] = []  # as text: an error that is kept keeps its frames

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self._lines.append(f"{record.name}: {record.exc_info[1]!r}")

    def take(self) -> set[str]:
        """What was logged until now, each once. It counts as expected."""
        lines, self._lines = self._lines, []
        return set(lines)

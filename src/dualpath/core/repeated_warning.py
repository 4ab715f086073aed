"""One log line for many failures of one kind: a dead store fails thousands of blocks and would hide everything else."""

from __future__ import annotations

import logging

from dualpath.core.runtime import Clock

INTERVAL_S = 10.0


class RepeatedWarning:
    """Logs the first failure at once, then one line every ``interval_s`` at most, with how many there were since.

    Counters, not logs, tell how many there were altogether: what fails after the last line is not logged.
    """

    def __init__(self, logger: logging.Logger, clock: Clock, interval_s: float = INTERVAL_S) -> None:
        self._logger, self._clock, self._interval_s = logger, clock, interval_s
        self._next_s = float("-inf")
        self._num_unsaid = 0

    def log(self, text: str) -> None:
        now_s = self._clock.now_s()
        if now_s < self._next_s:
            self._num_unsaid += 1
            return
        self._next_s = now_s + self._interval_s
        more = f" ({self._num_unsaid} more like it before)" if self._num_unsaid else ""
        self._num_unsaid = 0
        self._logger.warning("%s%s", text, more)

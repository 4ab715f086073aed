"""Pauses before something is tried again: ever longer, and drawn, so that what failed together comes back apart."""

from __future__ import annotations

from dualpath.core.runtime import Runtime
from dualpath.scheduler.config import SchedulerConfig

_JITTER_BITS = 32


class Backoff:
    """Pauses of half to all of ``pause_s``, which doubles each time up to ``pause_max_s``."""

    def __init__(self, config: SchedulerConfig, runtime: Runtime) -> None:
        self._config, self._runtime = config, runtime
        self._next_s = config.pause_s

    def next_s(self) -> float:
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, self._config.pause_max_s)
        return pause_s * (0.5 + self._runtime.random_bits(_JITTER_BITS) / (1 << (_JITTER_BITS + 1)))

    def reset(self) -> None:
        self._next_s = self._config.pause_s

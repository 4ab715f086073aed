"""The modes of a pause: what becomes of the requests that run."""

from __future__ import annotations

from enum import Enum


class PauseMode(str, Enum):
    ABORT = "abort"  # they end with the tokens that they have
    WAIT = "wait"  # they come to their end
    KEEP = "keep"  # they stand still, and go on
    RETRACT = "retract"  # they give up their memory, and go on after the tokens that they have

    @property
    def keeps(self) -> bool:
        """They go on afterwards: engines stand still meanwhile."""
        return self in (PauseMode.KEEP, PauseMode.RETRACT)

"""Emulation of a node's storage NIC: virtual time per direction, so that one machine behaves like several slow ones.

Each direction serves transfers first come first served at a fixed rate: a transfer of n bytes that starts now ends at
``max(now, end of the one before) + n / rate``. It is held back until then, however fast it really was.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import Enum

from dualpath.core.runtime import Clock


class NicDirection(str, Enum):
    READ = "read"
    WRITE = "write"


@dataclass(slots=True)
class _Lane:
    free_at_s: float = 0.0
    begun_bytes: int = 0
    ended_bytes: int = 0


class StorageNic:
    """One per node, shared by the engines of the node in this process. Thread-safe; nothing blocks.

    ``bytes_per_s`` is the rate of each direction (full duplex); None paces nothing and only counts.
    """

    def __init__(self, bytes_per_s: float | None, clock: Clock) -> None:
        if bytes_per_s is not None and bytes_per_s <= 0:
            raise ValueError(f"bytes_per_s must be positive, got {bytes_per_s}")
        self.bytes_per_s = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._lanes = {direction: _Lane(free_at_s=clock.now_s()) for direction in NicDirection}

    def begin(self, direction: NicDirection, num_bytes: int) -> float:
        """Take the next place in line. Returns when the transfer may end at the earliest, in the clock's seconds."""
        now_s = self._clock.now_s()
        if self.bytes_per_s is None:
            return now_s
        with self._lock:
            lane = self._lanes[direction]
            lane.begun_bytes += num_bytes
            lane.free_at_s = max(now_s, lane.free_at_s) + num_bytes / self.bytes_per_s
            return lane.free_at_s

    def cancel(self, direction: NicDirection, num_bytes: int) -> None:
        """The transfer moved nothing: those that begin later need not wait for it."""
        if self.bytes_per_s is not None:
            with self._lock:
                lane = self._lanes[direction]
                lane.begun_bytes -= num_bytes
                lane.free_at_s -= num_bytes / self.bytes_per_s

    def end(self, direction: NicDirection, num_bytes: int) -> None:
        """Count a transfer that has moved its bytes."""
        with self._lock:
            self._lanes[direction].ended_bytes += num_bytes

    def passed_bytes(self, direction: NicDirection) -> int:
        """All that has gone through up to now; of a transfer that is being paced, the part that its rate lets through.

        So the counter of a slow NIC grows evenly, as a real one's does, and not by whole blocks.
        """
        with self._lock:
            lane = self._lanes[direction]
            if self.bytes_per_s is None:
                return lane.ended_bytes
            waiting_s = max(0.0, lane.free_at_s - self._clock.now_s())
            return max(0, round(lane.begun_bytes - waiting_s * self.bytes_per_s))

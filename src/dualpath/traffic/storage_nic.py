"""Emulation of a node's storage NIC: virtual time per direction, so that one machine behaves like several slow ones.

Each direction serves transfers first come first served at a fixed rate: a transfer of n bytes that starts now ends at
``max(now, end of the one before) + n / rate``. It is held back until then, however fast it really was.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from dualpath.core.clock import Clock

_MAX_WINDOWS = 3600


class NicDirection(str, Enum):
    READ = "read"
    WRITE = "write"


@dataclass(slots=True)
class _Lane:
    free_at_s: float = 0.0
    total_bytes: int = 0
    windows: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_MAX_WINDOWS))  # (second, bytes)


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
            lane.free_at_s = max(now_s, lane.free_at_s) + num_bytes / self.bytes_per_s
            return lane.free_at_s

    def cancel(self, direction: NicDirection, num_bytes: int) -> None:
        """The transfer moved nothing: those that begin later need not wait for it."""
        if self.bytes_per_s is not None:
            with self._lock:
                self._lanes[direction].free_at_s -= num_bytes / self.bytes_per_s

    def end(self, direction: NicDirection, num_bytes: int) -> None:
        """Count a transfer that has moved its bytes."""
        second = int(self._clock.now_s())
        with self._lock:
            lane = self._lanes[direction]
            lane.total_bytes += num_bytes
            if lane.windows and lane.windows[-1][0] == second:
                num_bytes += lane.windows.pop()[1]
            lane.windows.append((second, num_bytes))

    def total_bytes(self, direction: NicDirection) -> int:
        return self._lanes[direction].total_bytes

    def windows(self, direction: NicDirection) -> list[tuple[int, int]]:
        """(whole second of the clock, bytes that ended in it), oldest first, idle seconds left out; about an hour."""
        with self._lock:
            return list(self._lanes[direction].windows)

"""How many cores this process and the whole machine kept busy while something ran: did computing take the time?"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

IDLE_FIELDS = (3, 4)  # of a "cpu" line in /proc/stat: idle and waiting for I/O (proc(5))
GUEST_FIELD = 8  # guest time is part of user time


@dataclass(slots=True)
class CpuUse:
    """Mean numbers of busy cores; filled in when the block has ended."""

    cores: int
    own: float = 0.0
    machine: float | None = None  # None: this system does not say

    def as_json(self) -> dict[str, float | None]:
        return {"cores": self.cores, "own_busy_cores": self.own, "machine_busy_cores": self.machine}

    def __str__(self) -> str:
        machine = "" if self.machine is None else f", {self.machine:.1f} with everything else on this machine,"
        return f"cores busy: {self.own:.1f} by the live cluster{machine} of {self.cores}"


@contextmanager
def cpu_use() -> Iterator[CpuUse]:
    """Measures from here to the end of the block."""
    use = CpuUse(os.cpu_count() or 1)
    start_s, own_s, machine_s = time.perf_counter(), _own_s(), _machine_s()
    yield use
    elapsed_s, machine_end_s = time.perf_counter() - start_s, _machine_s()
    use.own = (_own_s() - own_s) / elapsed_s
    if machine_s is not None and machine_end_s is not None:
        use.machine = (machine_end_s - machine_s) / elapsed_s


def _own_s() -> float:
    times = os.times()
    return times.user + times.system


def _machine_s() -> float | None:
    """Busy time of all cores since the system's start; None where there is no /proc."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    ticks = [int(word) for word in first.split()[1:]]
    busy = sum(count for field, count in enumerate(ticks[:GUEST_FIELD]) if field not in IDLE_FIELDS)
    return busy / os.sysconf("SC_CLK_TCK")

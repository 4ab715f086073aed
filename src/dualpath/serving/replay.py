"""A minute's replay for the live page, in a process of its own: least priority, one at a time, bounded in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import Sequence

import msgspec

from dualpath.core.parent import end_with_parent
from dualpath.core.request import RequestRecord
from dualpath.core.stats import ClusterStats

TIMEOUT_S = 120.0
_CPU_S = 90  # the worker's own bound: it holds where nobody is left to end it
_NICENESS = 19


class Minute(msgspec.Struct):
    """What the worker is given on its standard input, as JSON."""

    records: Sequence[RequestRecord]
    stats: ClusterStats


async def replay(records: Sequence[RequestRecord], stats: ClusterStats, timeout_s: float = TIMEOUT_S) -> bytes:
    """A ``sim.replay.minute.WhatIf`` as JSON. The arguments are read before the first wait. Cancelled, it ends its
    worker. Raises TimeoutError, and OSError where the worker did not come to its end.
    """
    given = msgspec.json.encode(Minute(records, stats))
    pipe = asyncio.subprocess.PIPE
    words = (sys.executable, "-m", "dualpath.serving.replay")
    process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, start_new_session=True)
    try:
        async with asyncio.timeout(timeout_s):
            answer, _ = await process.communicate(given)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        ended = process.returncode or 0
        raise OSError(f"the replay ended with {signal.Signals(-ended).name if ended < 0 else ended}")
    return answer


def _work() -> None:
    end_with_parent()
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # cores that nobody else wants
    minute = msgspec.json.decode(sys.stdin.buffer.read(), type=Minute)
    from dualpath.sim.replay.minute import last_minute

    sys.stdout.buffer.write(msgspec.json.encode(last_minute(minute.records, minute.stats)))


if __name__ == "__main__":
    _work()

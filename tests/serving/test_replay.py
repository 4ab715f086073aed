"""The replay's own process: it says what the simulator says, takes no time from others, and ends with its asker."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tests.sim.replay.test_minute import run, stats, with_stalls

from dualpath.core.stats import ClusterStats
from dualpath.serving import replay as module
from dualpath.serving.replay import replay
from dualpath.sim.replay.minute import WhatIf, last_minute
from dualpath.trace.load import load_trace


async def test_it_says_what_the_simulator_says_here() -> None:
    cluster = stats("basic")
    records, _ = run(cluster, "basic", load_trace("synth:64K", agents=4, rounds=6, scale=0.05, seed=3))
    cluster = with_stalls(cluster, records)
    told = msgspec.json.decode(await replay(records, cluster), type=WhatIf)
    assert told == last_minute(records, cluster)
    assert told.refusal is None
    assert {outcome.what for outcome in told.systems} == {"basic", "split", "oracle"}


async def test_missing_data_is_a_refusal_and_no_error() -> None:
    told = msgspec.json.decode(await replay([], ClusterStats(())), type=WhatIf)
    assert told.refusal == "0 requests came and finished, 10 are needed"


def children() -> list[str]:
    """Of this process: their commands."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            status, command = path.read_text(), (path.parent / "cmdline").read_text()
        except OSError:
            continue
        if re.search(rf"\) [RSD] {os.getpid()} ", status) and "dualpath.serving.replay" in command:
            found.append(command)
    return found


async def test_it_ends_when_time_is_up() -> None:
    with pytest.raises(TimeoutError):
        await replay([], ClusterStats(()), timeout_s=0.01)
    assert children() == []


async def test_it_ends_when_nobody_wants_the_answer() -> None:
    asking = asyncio.create_task(replay([], ClusterStats(())))
    while not children():  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert children() == []


async def test_an_end_without_an_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(OSError, match="the replay ended with 1"):
        await replay([], ClusterStats(()))


def test_it_runs_where_others_leave_time() -> None:
    program = (
        "import io, os, sys, resource; from dualpath.serving import replay\n"
        'class In: buffer = io.BytesIO(b\'{"records": [], "stats": {"engines": []}}\')\n'
        "sys.stdin = In(); replay._work(); sys.stdout.flush()\n"
        "print(); print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0) == os.SCHED_IDLE,"
        " resource.getrlimit(resource.RLIMIT_CPU)[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "19 True 90"

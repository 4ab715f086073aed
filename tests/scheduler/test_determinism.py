"""What happens depends on no hash: other processes, with other hash seeds, do the same in the same order."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import subprocess
import sys

from tests.scheduler.cluster import cluster
from tests.scheduler.fixtures import BLOCK, NAMESPACE
from tests.scheduler.test_chaos import break_things, converse
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.ids import BlockKey
from dualpath.core.keys import root_key
from dualpath.scheduler.blocks import BlockHashes, WriteLedger
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.desk.api import links


async def story() -> str:
    """Everything that engines were asked for, in order."""
    lines: list[str] = []
    config = SchedulerConfig(max_retries=20, beta_tokens=200, expected_output_tokens=16, probe_interval_s=0.3)
    async with cluster(prefill=2, decode=3, prefill_slots=60, decode_slots=70, device_tokens=1024, config=config) as c:
        for engine in (*c.prefill, *c.decode):
            log = engine.log
            log.clear()
            engine.log = Log(lines, str(engine.info.engine_id))  # type: ignore[assignment]
        for decode in c.decode:
            decode.lossy_release = True
        chaos = asyncio.create_task(break_things(c, random.Random(1), may_die=True))
        try:
            await asyncio.gather(*(converse(c, random.Random(i), f"c{i}", lines) for i in range(30)))
        finally:
            chaos.cancel()
        for engine in (*c.prefill, *c.decode):
            engine.faults.clear()
            if engine.trouble:
                engine.come_back()
        c.prefill[0].busy_releases = 0
        await c.quiet()
        lines += [f"{record}" for record in c.service.recent(1000)]
    return "\n".join(lines)


class Log:
    """Takes what an engine logs, with the time."""

    def __init__(self, lines: list[str], name: str) -> None:
        self._lines, self._name = lines, name

    def append(self, entry: tuple[str, str]) -> None:
        self._lines.append(f"{asyncio.get_running_loop().time():.9f} {self._name} {entry}")


def test_two_processes_with_other_hash_seeds_do_the_same() -> None:
    command = "import tests.scheduler.test_determinism as t; t.tell()"
    answers = [
        subprocess.run(
            [sys.executable, "-c", command],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        ).stdout.split()
        for seed in ("1", "2", "3")
    ]
    assert answers[0] == answers[1] == answers[2]
    assert int(answers[0][1]) > 1000, "much happened"


def test_writes_that_are_given_up_are_given_up_in_their_order() -> None:
    told: list[BlockKey] = []

    class Index:
        def begin_write(self, key: BlockKey, parent: BlockKey | None, shelf: object = None) -> bool:
            return True

        def fail_write(self, key: BlockKey) -> None:
            told.append(key)

    tokens = range(40 * BLOCK)
    chain = BlockHashes(root_key(NAMESPACE), tokens, BLOCK)
    ledger = WriteLedger(Index())  # type: ignore[arg-type]
    ledger.writing(links(chain.parent, chain.keys))
    ledger.close()
    assert told == chain.keys


def tell() -> None:
    text = run_virtual(story())
    print(hashlib.sha256(text.encode()).hexdigest(), text.count("\n"))

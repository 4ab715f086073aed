"""Hundreds of conversations under random faults: every client gets the right tokens, and nothing is left anywhere."""

from __future__ import annotations

import asyncio
import random

import pytest
from tests.scheduler.cluster import Cluster, cluster, expected
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.errors import DeadlineExceededError, DualPathError, EngineLostError, TransferError
from dualpath.core.ids import RequestId
from dualpath.core.request import Request, SamplingParams
from dualpath.scheduler.config import SchedulerConfig

OPERATIONS = ["reserve", "read", "batch", "prefill", "admit", "step", "release", "write"]
ERRORS = [EngineLostError("lost"), DeadlineExceededError("late"), TransferError("cut")]


async def converse(c: Cluster, rng: random.Random, name: str, outcomes: list[str]) -> None:
    """A few turns, each prompt being all that was said before; now and then the client leaves."""
    prompt = tuple(rng.randrange(50) for _ in range(rng.randint(1, 60)))
    for turn in range(rng.randint(1, 4)):
        sampling = SamplingParams(max_tokens=rng.randint(1, 30), seed=rng.randrange(1000))
        request = Request(RequestId(f"{name}.{turn}"), prompt, sampling)
        task = c.start(request)
        if rng.random() < 0.2:
            await asyncio.sleep(rng.random() * 0.5)
            task.cancel()
        try:
            answer = await task
        except asyncio.CancelledError:
            outcomes.append("cancelled")
            return
        except DualPathError:
            outcomes.append("failed")
            return
        assert answer == expected(request)
        outcomes.append("finished")
        prompt = (*prompt, *answer, *(rng.randrange(50) for _ in range(rng.randint(1, 20))))


async def break_things(c: Cluster, rng: random.Random, may_die: bool) -> None:
    """Faults, lost blocks, slow engines, and engines that die and come back: as much for every request, be there few or
    many, or the last ones have no chance."""
    engines = [*c.prefill, *c.decode]
    while True:
        await asyncio.sleep(rng.random() * 2.4 / max(1, len(c.service._running)))
        engine = rng.choice(engines)
        match rng.randrange(6):
            case 0 | 1:
                operation = rng.choice([op for op in OPERATIONS if op != "write"])
                error = TransferError("release") if operation == "release" else rng.choice(ERRORS)
                engine.faults[operation].append(error)
            case 2:
                engine.delay_s[rng.choice(OPERATIONS)] = rng.choice([0.0, 0.001, 0.03, 0.2])
            case 3:
                for key in rng.sample(sorted(c.storage.blocks), min(3, len(c.storage.blocks))):
                    c.storage.blocks.discard(key)
            case 4:
                c.prefill[0].busy_releases += 1
            case 5 if may_die and rng.random() < 0.2 and not any(e.trouble for e in engines):
                engine.die()
                await asyncio.sleep(rng.random() * 2)
                engine.come_back()


@pytest.mark.parametrize("seed", range(6))
def test_random_conversations_under_random_faults(seed: int) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        config = SchedulerConfig(
            path_policy=rng.choice(["split", "shorter", "decode"]),
            max_retries=20,
            beta_tokens=rng.choice([100, 1000]),
            alpha_tokens=rng.choice([0, 100]),
            expected_output_tokens=16,
            probe_interval_s=0.3,
        )
        async with cluster(
            prefill=2, decode=3, prefill_slots=60, decode_slots=70, device_tokens=1024, config=config
        ) as c:
            may_die = seed % 2 == 1
            for engine in c.decode:
                engine.lossy_release = may_die
            outcomes: list[str] = []
            chaos = asyncio.create_task(break_things(c, rng, may_die))
            talks = [converse(c, random.Random(seed * 1000 + i), f"c{i}", outcomes) for i in range(60)]
            try:
                async with asyncio.timeout(3600):
                    await asyncio.gather(*talks)
            finally:
                chaos.cancel()
            for prefill_engine in c.prefill:
                prefill_engine.busy_releases = 0
            for engine in (*c.prefill, *c.decode):
                engine.faults.clear()
                if engine.trouble:
                    engine.come_back()
            assert outcomes.count("finished") > 0.6 * len(outcomes)
            assert outcomes.count("failed") <= 2
            assert c.service.recent(1000)
            assert all(record.outcome != "running" for record in c.service.recent(1000))

    run_virtual(scenario())

"""Shares of a budget of bytes: bounded, in order of arrival, and nobody waits for somebody who waits."""

from __future__ import annotations

import asyncio
import random

import pytest

from dualpath.core.errors import OverloadedError
from dualpath.gateway.http.byte_budget import ByteBudget, Share

LONG_S = 60.0


async def hold(budget: ByteBudget, num_bytes: int, log: list[str], name: str, end: asyncio.Event) -> None:
    with budget.share() as share:
        await share.take(num_bytes, LONG_S)
        log.append(name)
        await end.wait()


async def turns(number: int = 10) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_the_first_to_come_is_the_first_to_get_however_much_it_wants() -> None:
    budget, log, end = ByteBudget(100, "here"), [], asyncio.Event()
    with budget.share() as share:
        await share.take(60, LONG_S)
        tasks = [
            asyncio.create_task(hold(budget, size, log, name, end)) for name, size in [("large", 90), ("small", 10)]
        ]
        await turns()
        assert log == []  # the small one would fit
    await turns()
    assert log == ["large", "small"]
    end.set()
    await asyncio.gather(*tasks)
    assert budget.used_bytes == 0


async def test_what_exceeds_the_budget_gets_it_alone() -> None:
    budget, log, end = ByteBudget(100, "here"), [], asyncio.Event()
    with budget.share() as share:
        await share.take(1, LONG_S)
        task = asyncio.create_task(hold(budget, 500, log, "huge", end))
        await turns()
        assert log == []
    await turns()
    assert log == ["huge"]
    end.set()
    await task


async def test_half_grown_shares_do_not_wait_for_each_other() -> None:
    budget, most = ByteBudget(100, "here"), 0

    async def grow() -> None:
        nonlocal most
        with budget.share() as share:
            for _ in range(5):
                await share.take(20, LONG_S)
                most = max(most, budget.used_bytes)
                await asyncio.sleep(0)

    async with asyncio.timeout(LONG_S):
        await asyncio.gather(*(grow() for _ in range(20)))
    assert 100 < most <= 200  # the budget and one whole share
    assert budget.used_bytes == 0


async def test_waiting_ends_and_lets_those_behind_pass() -> None:
    budget, log, end = ByteBudget(100, "to swing a cat"), [], asyncio.Event()
    with budget.share() as share, budget.share() as late:
        await share.take(60, LONG_S)
        small = asyncio.create_task(hold(budget, 10, log, "before", end))
        await turns()
        blocked = asyncio.create_task(late.take(90, 0.05))
        await turns()
        behind = asyncio.create_task(hold(budget, 10, log, "behind", end))
        with pytest.raises(OverloadedError, match=r"no room to swing a cat within 0\.05 s"):
            await blocked
        await turns()
        assert log == ["before", "behind"]
        end.set()
        await asyncio.gather(small, behind)
    assert budget.used_bytes == 0


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_whoever_gives_up_when(seed: int) -> None:
    rng, budget, most = random.Random(seed), ByteBudget(1000, "here"), 0

    async def use() -> None:
        nonlocal most
        with budget.share() as share:
            for _ in range(rng.randint(1, 5)):
                await _take(share, rng)
                most = max(most, budget.used_bytes)
                for _ in range(rng.randint(0, 3)):
                    await asyncio.sleep(0)

    tasks = [asyncio.create_task(use()) for _ in range(60)]
    for task in rng.sample(tasks, 20):
        await turns(rng.randint(0, 20))
        task.cancel()
    async with asyncio.timeout(LONG_S):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert most <= 1000 + 5 * 300
    assert budget.used_bytes == 0
    with budget.share() as share:
        await share.take(1000, 0.01)  # nobody is left in the way


async def _take(share: Share, rng: random.Random) -> None:
    try:
        await share.take(rng.randint(1, 300), rng.choice([0.0, LONG_S]))
    except OverloadedError:
        await asyncio.sleep(0)

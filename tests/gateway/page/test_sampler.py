"""One sample for all followers, none when nobody follows, and no more events a second than there may be."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

import pytest

from dualpath.gateway.page.sampler import Sampler


class Counter:
    def __init__(self) -> None:
        self.num_taken = 0
        self.error: Exception | None = None
        self.duration_s = 0.0

    async def __call__(self) -> bytes:
        self.num_taken += 1
        await asyncio.sleep(self.duration_s)
        if self.error is not None:
            raise self.error
        return b"data: %d" % self.num_taken


def follow(sampler: Sampler, duration_s: float = 60.0) -> aclosing[AsyncGenerator[bytes, None]]:
    return aclosing(cast("AsyncGenerator[bytes, None]", sampler.follow(duration_s)))


async def take(sampler: Sampler, num: int) -> list[bytes]:
    seen: list[bytes] = []
    async with follow(sampler) as events:
        async for event in events:
            seen.append(event)
            if len(seen) == num:
                break
    return seen


async def test_all_followers_see_the_same_samples() -> None:
    counter = Counter()
    counter.duration_s = 0.01  # so that all ask while it is taken
    sampler = Sampler(counter, every_s=0.05, events_per_s=1e6)
    seen = await asyncio.gather(*(take(sampler, 3) for _ in range(3)))
    assert seen == [[b"data: 1", b"data: 2", b"data: 3"]] * 3


async def test_a_newcomer_gets_the_sample_of_this_second() -> None:
    counter = Counter()
    sampler = Sampler(counter, every_s=60.0)
    for _ in range(3):
        (event,) = await take(sampler, 1)
        assert event.endswith(b"data: 1")


async def test_nothing_is_sampled_when_nobody_follows() -> None:
    counter = Counter()
    sampler = Sampler(counter, every_s=0.01)
    await take(sampler, 2)
    await asyncio.sleep(0.1)
    assert counter.num_taken == 2
    assert await take(sampler, 1) == [b"data: 3"]


async def test_the_end_of_a_stream_says_when_to_come_again() -> None:
    sampler = Sampler(Counter(), every_s=0.05)
    async with follow(sampler, duration_s=0.12) as events:
        seen = [event async for event in events]
    assert seen[:-1] == [b"data: 1", b"data: 2"]
    assert seen[-1] in (b"retry: 50\ndata: 3", b"retry: 49\ndata: 3")


async def test_many_pages_come_one_after_the_other() -> None:
    sampler = Sampler(Counter(), every_s=1.0, events_per_s=50.0)
    waits_ms: list[int] = []
    for _ in range(1000):
        (event,) = await take(sampler, 1)
        if event.startswith(b"retry: "):
            waits_ms.append(int(event.split()[1]))
    assert 1000 - len(waits_ms) in range(20, 30)  # those who may stay: waits from 1 to 1.5 s
    assert max(waits_ms) == pytest.approx(1000 + 1000 * 20, rel=0.05)
    apart_ms = [after - before for before, after in itertools.pairwise(waits_ms)]
    assert sum(apart_ms) / len(apart_ms) == pytest.approx(20.0, rel=0.1)


async def test_a_crowd_that_is_gone_is_forgotten() -> None:
    sampler = Sampler(Counter(), every_s=0.01, events_per_s=1000.0)
    for _ in range(100):
        await take(sampler, 1)
    await asyncio.sleep(0.15)
    (event,) = await take(sampler, 1)
    assert not event.startswith(b"retry")


async def test_an_error_goes_to_all_and_the_next_sample_is_a_new_one() -> None:
    counter = Counter()
    counter.duration_s = 0.01
    sampler = Sampler(counter, every_s=0.02)
    counter.error = RuntimeError("broken")
    found = await asyncio.gather(*(take(sampler, 1) for _ in range(3)), return_exceptions=True)
    assert [str(error) for error in found] == ["broken"] * 3
    counter.error = None
    await asyncio.sleep(0.02)
    assert await take(sampler, 1) == [b"data: 2"]


async def test_who_goes_does_not_end_what_others_wait_for() -> None:
    counter = Counter()
    counter.duration_s = 0.05
    sampler = Sampler(counter)
    first, second = (asyncio.create_task(take(sampler, 1)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    assert await second == [b"data: 1"]


async def test_an_error_after_all_have_gone_is_no_alarm() -> None:
    counter, alarms = Counter(), list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: alarms.append(context))
    counter.duration_s, counter.error = 0.02, RuntimeError("broken")
    sampler = Sampler(counter)
    follower = asyncio.create_task(take(sampler, 1))
    await asyncio.sleep(0.01)
    follower.cancel()
    await asyncio.sleep(0.03)
    del counter, sampler, follower
    gc.collect()
    await asyncio.sleep(0)
    assert alarms == []

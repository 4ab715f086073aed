"""A queue with one reader: everything once, in order, whoever is quicker; a reader that gives up takes nothing."""

from __future__ import annotations

import asyncio
import random

import pytest

from dualpath.core.one_reader import OneReader


async def take(queue: OneReader[int]) -> int:
    while not queue.items:
        await queue.filled()
    return queue.items.popleft()


@pytest.mark.parametrize("seed", range(20))
async def test_everything_comes_once_and_in_order(seed: int) -> None:
    queue: OneReader[int] = OneReader()
    rng = random.Random(seed)

    async def write() -> None:
        for number in range(200):
            queue.put(number)
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)

    async def read() -> list[int]:
        read = []
        while len(read) < 200:
            try:
                async with asyncio.timeout(rng.choice([None, 0])):
                    read.append(await take(queue))
            except TimeoutError:
                await asyncio.sleep(0)
        return read

    async with asyncio.timeout(30):
        _, got = await asyncio.gather(write(), read())
    assert got == list(range(200))


async def test_a_reader_that_gives_up_in_the_moment_of_an_item_leaves_it() -> None:
    queue: OneReader[int] = OneReader()
    reader = asyncio.create_task(take(queue))
    await asyncio.sleep(0)
    queue.put(1)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    queue.put(2)
    assert [await take(queue), await take(queue)] == [1, 2]

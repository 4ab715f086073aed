"""EngineStream: each item has the whole deadline, with one timer for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.errors import DeadlineExceededError
from dualpath.core.ids import EngineId
from dualpath.scheduler.engine_call import EngineFailure, EngineStream

TIMEOUT_S = 10.0


async def items(*pauses_s: float) -> AsyncIterator[int]:
    for number, pause_s in enumerate(pauses_s):
        await asyncio.sleep(pause_s)
        yield number


async def read(*pauses_s: float) -> list[int]:
    found: list[int] = []
    async with EngineStream(EngineId("d"), items(*pauses_s), TIMEOUT_S) as stream:
        async for item in stream:
            found.append(item)
            await asyncio.sleep(2 * TIMEOUT_S)  # the reader's own time does not count
    return found


def test_slow_items_that_are_in_time_each_take_longer_than_one_deadline_together() -> None:
    assert run_virtual(read(9.0, 9.0, 9.0)) == [0, 1, 2]


@pytest.mark.parametrize("pauses_s", [(10.5,), (1.0, 10.5), (9.0, 9.0, 10.5)])
def test_an_item_that_is_late_is_a_failure_of_the_engine(pauses_s: tuple[float, ...]) -> None:
    async def scenario() -> float:
        started_s = asyncio.get_running_loop().time()
        with pytest.raises(EngineFailure) as failure:
            await read(*pauses_s)
        assert isinstance(failure.value.cause, DeadlineExceededError)
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        return asyncio.get_running_loop().time() - started_s

    waited_s = sum(pauses_s[:-1]) + (len(pauses_s) - 1) * 2 * TIMEOUT_S + TIMEOUT_S
    assert run_virtual(scenario()) == pytest.approx(waited_s)


def test_whoever_is_cancelled_from_outside_is_cancelled() -> None:
    async def scenario() -> None:
        reading = asyncio.ensure_future(read(5.0))
        await asyncio.sleep(1.0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    run_virtual(scenario())

"""Staging slots: nobody gets one twice, the line is kept, nothing leaks, whatever transfers and tasks do."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.traffic.rig import ManualClock

from dualpath.core.errors import ConfigError, DeadlineExceededError, TransferError
from dualpath.core.runtime import SystemRuntime
from dualpath.traffic.slots import SlotPool


def make_pool(num_slots: int = 4, first_slot: int = 0) -> SlotPool:
    return SlotPool(num_slots, SystemRuntime(), first_slot=first_slot)


async def test_slots_come_from_the_pools_range_and_return_to_it() -> None:
    pool = make_pool(4, first_slot=10)
    assert sorted(await pool.acquire(4)) == [10, 11, 12, 13]
    assert (pool.num_used, pool.num_free) == (4, 0)
    assert 10 in pool
    assert 9 not in pool
    pool.release([11, 13])
    assert sorted(await pool.acquire(2)) == [11, 13]
    pool.check_integrity()


async def test_a_small_request_does_not_overtake_a_large_one() -> None:
    pool = make_pool()
    held = await pool.acquire(3)
    order: list[int] = []

    async def take(count: int) -> None:
        await pool.acquire(count, 5.0)
        order.append(count)

    tasks = [asyncio.create_task(take(2))]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(take(1)))
    await asyncio.sleep(0.01)
    assert order == []
    assert pool.num_waiting == 2
    pool.release(held)
    await asyncio.gather(*tasks)
    assert order == [2, 1]
    pool.check_integrity()


async def test_nobody_waits_for_slots_that_all_linger_where_that_is_not_wanted() -> None:
    pool = SlotPool(2, SystemRuntime(), waits_for_lingering=False)
    slots = await pool.acquire(2)
    pool.hold(slots)
    waiting = asyncio.create_task(pool.acquire(1))
    await asyncio.sleep(0)
    pool.release(slots[:1])
    await asyncio.sleep(0.01)
    assert not waiting.done(), "one may still come back in order"
    pool.release(slots[1:])
    with pytest.raises(DeadlineExceededError, match="do not end"):
        await waiting
    with pytest.raises(DeadlineExceededError, match="do not end"):
        await pool.acquire(1)
    pool.unhold(slots[:1])
    assert await pool.acquire(1) == slots[:1]
    pool.unhold(slots[1:])
    pool.check_integrity()


async def test_a_wait_ends_at_its_deadline_and_frees_the_line() -> None:
    clock = ManualClock()
    pool = SlotPool(4, clock)
    await pool.acquire(3)
    large = asyncio.create_task(pool.acquire(2, 5.0))
    small = asyncio.create_task(pool.acquire(1, 60.0))
    await asyncio.sleep(0.01)
    assert not small.done()
    clock.time_s += 6
    with pytest.raises(DeadlineExceededError, match="2 staging slots"):
        await large
    assert len(await small) == 1
    pool.check_integrity()


async def test_a_cancelled_wait_keeps_nothing_even_when_granted_at_the_same_moment() -> None:
    pool = make_pool()
    held = await pool.acquire(4)
    waiting = asyncio.create_task(pool.acquire(4, 5.0))
    await asyncio.sleep(0)
    pool.release(held)  # grants to the waiter, which has not woken yet
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert pool.num_free == 4
    pool.check_integrity()


async def test_more_than_the_pool_has_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="5 staging slots"):
        await make_pool(4).acquire(5, 1.0)


async def test_slots_that_another_pool_has_granted_are_waited_for() -> None:
    """A follower's: it has no word in which ones, only in when."""
    pool = make_pool(4, first_slot=10)
    first = await pool.acquire_these([12, 10], 5.0)
    assert first == [12, 10]
    pool.hold([12])
    pool.release([12, 10])
    waiting = asyncio.create_task(pool.acquire_these([11, 12], 5.0))
    await asyncio.sleep(0.01)
    pool.check_integrity()
    assert not waiting.done()  # a transfer may still touch one
    pool.unhold([12])
    assert await waiting == [11, 12]
    with pytest.raises(DeadlineExceededError, match="no 2 staging slots"):
        await pool.acquire_these([10, 12], 0.01)
    assert pool.granted == [11, 12]
    for wrong in ([9], [10, 10], [14]):
        with pytest.raises(ValueError, match="not of this pool, or twice"):
            await pool.acquire_these(wrong)
    pool.suspect([11])
    pool.release([11, 12])
    assert await pool.acquire_these([11], 1.0) == [11]  # although it is aside: the other pool knows nothing of that
    pool.check_integrity()


async def test_closing_sends_the_line_away() -> None:
    pool = make_pool()
    await pool.acquire(4)
    waiting = asyncio.create_task(pool.acquire(1, 5.0))
    await asyncio.sleep(0)
    pool.close()
    with pytest.raises(TransferError):
        await waiting
    with pytest.raises(TransferError):
        await pool.acquire(1)


async def test_a_released_slot_lingers_until_the_last_transfer_ends() -> None:
    pool = make_pool(1)
    (slot,) = await pool.acquire(1)
    pool.hold([slot])
    pool.hold([slot])
    pool.release([slot])
    pool.unhold([slot])
    assert pool.num_free == 0
    with pytest.raises(ValueError, match="not granted"):
        pool.hold([slot])
    pool.unhold([slot])
    assert pool.num_free == 1


async def test_where_damage_was_found_nobody_is_let_in_for_a_while() -> None:
    pool = make_pool(16)
    slots = await pool.acquire(3)
    pool.hold(slots[:1])
    pool.suspect([*slots[:2], 9])
    pool.release(slots)
    pool.unhold(slots[:1])
    assert (pool.num_aside, pool.num_free, pool.num_used) == (2, 14, 0)
    taken = await pool.acquire(14)
    assert set(taken) == set(range(16)) - set(slots[:2])
    pool.suspect(taken[:1])
    pool.release(taken[:1])
    assert pool.num_aside == 2, "an eighth; the one that was aside longest comes back"
    assert await pool.acquire(1) == slots[1:2]
    pool.check_integrity()


async def test_a_prompt_that_needs_all_slots_gets_those_that_are_aside() -> None:
    pool = make_pool(16)
    pool.suspect(slots := (await pool.acquire(16))[:2])
    waiting = asyncio.create_task(pool.acquire(15, 5.0))
    await asyncio.sleep(0)
    pool.release(range(16))
    assert slots[0] in await waiting
    assert pool.num_aside == 1
    pool.check_integrity()


@pytest.mark.parametrize("slots", [[0, 0], [3]])
async def test_wrong_releases_are_refused_whole(slots: list[int]) -> None:
    pool = make_pool()
    assert await pool.acquire(2) == [0, 1]
    with pytest.raises(ValueError, match="not granted"):
        pool.release([1, *slots])
    assert pool.num_used == 2


class SlotPoolMachine(RuleBasedStateMachine):
    """Random acquires, releases, holds and cancellations against a model that knows who owns what."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.pool = make_pool(16)
        self.waiting: list[tuple[int, asyncio.Task[list[int]]]] = []
        self.owned: list[int] = []
        self.holds: Counter[int] = Counter()

    def teardown(self) -> None:
        for _, task in self.waiting:
            task.cancel()
        self.settle()
        self.loop.close()

    def settle(self) -> None:
        self.loop.run_until_complete(self._several_turns())
        still = []
        for count, task in self.waiting:
            if not task.done():
                still.append((count, task))
                continue
            assert not still, "overtaken"
            if not task.cancelled():
                slots = task.result()
                assert len(slots) == count
                assert not set(slots) & (set(self.owned) | {s for s, n in self.holds.items() if n}), "handed out twice"
                self.owned.extend(slots)
        self.waiting = still

    @staticmethod
    async def _several_turns() -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    @rule(count=st.integers(0, 16))
    def acquire(self, count: int) -> None:
        self.waiting.append((count, self.loop.create_task(self.pool.acquire(count))))
        self.settle()

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slots = data.draw(st.lists(st.sampled_from(self.owned), unique=True)) if self.owned else []
        self.owned = [slot for slot in self.owned if slot not in slots]
        self.pool.release(slots)
        self.settle()

    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        if self.owned:
            slot = data.draw(st.sampled_from(self.owned))
            self.holds[slot] += 1
            self.pool.hold([slot])

    @rule(data=st.data())
    def suspect(self, data: st.DataObject) -> None:
        self.pool.suspect(data.draw(st.sets(st.integers(0, 15))))

    @rule(data=st.data())
    def unhold(self, data: st.DataObject) -> None:
        held = [slot for slot, count in self.holds.items() if count]
        if held:
            slot = data.draw(st.sampled_from(held))
            self.holds[slot] -= 1
            self.pool.unhold([slot])
            self.settle()

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.waiting:
            index = data.draw(st.integers(0, len(self.waiting) - 1))
            _, task = self.waiting.pop(index)
            task.cancel()
            self.settle()

    @invariant()
    def nothing_is_lost(self) -> None:
        self.pool.check_integrity()
        lingering = {slot for slot, count in self.holds.items() if count} - set(self.owned)
        assert self.pool.num_used == len(self.owned) + len(lingering)


SlotPoolMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25)
TestSlotPool = SlotPoolMachine.TestCase


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12))
@settings(max_examples=30)
def test_everyone_in_line_is_served_in_order(counts: list[int]) -> None:
    async def scenario() -> list[int]:
        pool, served = make_pool(4), []

        async def use(index: int, count: int) -> None:
            slots = await pool.acquire(count, 5.0)
            served.append(index)
            await asyncio.sleep(0)
            pool.release(slots)

        tasks = [asyncio.create_task(use(index, count)) for index, count in enumerate(counts)]
        await asyncio.gather(*tasks)
        pool.check_integrity()
        assert pool.num_free == 4
        return served

    assert asyncio.run(scenario()) == list(range(len(counts)))

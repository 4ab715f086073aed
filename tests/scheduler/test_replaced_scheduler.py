"""A scheduler that dies in a pause: the next one hears of it from the gateways, and goes on with it until `/resume`."""

from __future__ import annotations

import asyncio

import pytest
from tests.scheduler.cluster import expected
from tests.scheduler.fixtures import NAMESPACE
from tests.scheduler.test_gateways_alike import LEASE_S, LONG, Front, Gateway, front
from tests.scheduler.virtual_time import LoopRuntime, run_virtual

from dualpath.core.pause import PauseMode
from dualpath.scheduler.scheduler import Scheduler

KNOWN = ("a.1", "b.1")  # gateways that nodes have heard of


async def replace(it: Front, *gateways: Gateway) -> None:
    """The scheduler's process ends; its successor has the same engines, and no gateway yet."""
    for gateway in gateways:
        gateway.line.is_cut = True
    await it.it.desk.tasks.cancel()
    it.it.scheduler = Scheduler(
        prefill_engines=it.it.prefill,
        decode_engines=it.it.decode,
        index=it.it.index,
        store=it.it.storage,
        namespace=NAMESPACE,
        model_name="fake",
        max_context_tokens=4096,
        runtime=LoopRuntime(),
    )
    await it.it.scheduler.start(gateways=KNOWN)
    it.serve()


async def reach(it: Front, gateway: Gateway) -> None:
    """It is heard by the present desk."""
    gateway.line.server, gateway.line.is_cut = it.server, False
    await asyncio.sleep(2.0)


def are_paused(it: Front) -> set[bool]:
    return {engine.is_paused for engine in (*it.it.prefill, *it.it.decode)}


@pytest.mark.parametrize("mode", PauseMode)
def test_a_pause_goes_on_until_it_is_ended(mode: PauseMode) -> None:
    async def scenario() -> None:
        async with front() as it:
            first, second = await it.add("a.1"), await it.add("b.1")
            await first.control.pause(mode)
            await replace(it, first, second)
            await reach(it, first)
            request, answer = first.start_request("early", 3)
            await asyncio.sleep(LEASE_S / 4)
            assert are_paused(it) == {mode.keeps}
            await reach(it, second)
            other, late = second.start_request("late", 3)
            await asyncio.sleep(1000.0)
            assert first.control.is_paused
            assert second.control.is_paused
            assert are_paused(it) == {mode.keeps}
            assert not answer.done()
            assert not late.done()
            await second.control.resume()
            assert not first.control.is_paused, "it has heard when the end is answered"
            assert are_paused(it) == {False}
            assert await answer == expected(request)
            assert await late == expected(other)

    run_virtual(scenario())


def test_kept_requests_are_not_taken_for_hung_and_go_on() -> None:
    async def scenario() -> None:
        async with front() as it:
            first, second = await it.add("a.1"), await it.add("b.1")
            request, answer = first.start_request("kept")
            await first.until_decoding()
            await second.control.pause(PauseMode.RETRACT)
            await replace(it, first, second)
            for gateway in (first, second):
                await reach(it, gateway)
            await asyncio.sleep(1000.0)
            assert not answer.done()
            await first.control.resume()
            assert await answer == expected(request)

    run_virtual(scenario())


def test_one_gateway_that_has_heard_of_it_is_enough() -> None:
    """The other has died with the scheduler."""

    async def scenario() -> None:
        async with front() as it:
            first, second = await it.add("a.1"), await it.add("b.1")
            await first.control.pause(PauseMode.KEEP)
            await replace(it, first, second)
            third = await it.add("b.2")
            await reach(it, first)
            await asyncio.sleep(2 * LEASE_S)
            assert are_paused(it) == {True}
            assert third.control.is_paused
            await third.control.resume()
            assert not first.control.is_paused
            second.line.server = it.server  # for an end in order
            second.line.is_cut = False

    run_virtual(scenario())


def test_without_a_pause_nobody_gets_engines_before_all_are_heard_or_given_up() -> None:
    async def scenario() -> None:
        async with front() as it:
            first, second = await it.add("a.1"), await it.add("b.1")
            running, going_on = first.start_request("running")
            await first.until_decoding()
            await replace(it, first, second)
            await reach(it, first)
            request, answer = first.start_request("next", 3)
            await asyncio.sleep(LEASE_S / 4)
            assert not first.control.is_paused
            assert not answer.done()
            assert await going_on == expected(running), "what runs goes on"
            await asyncio.sleep(2 * LEASE_S)
            assert answer.done()
            assert await answer == expected(request)
            await reach(it, second)
            assert not second.control.is_paused

    run_virtual(scenario())


def test_the_end_holds_though_one_gateway_still_knows_the_pause_only() -> None:
    async def scenario() -> None:
        async with front() as it:
            first, second = await it.add("a.1"), await it.add("b.1")
            await first.control.pause(PauseMode.KEEP)
            second.line.is_cut = True
            loop = asyncio.get_running_loop()
            started_s = loop.time()
            await first.control.resume()
            assert LEASE_S / 2 < loop.time() - started_s < 2 * LEASE_S, "it waits until the other is given up"
            await replace(it, first)
            await reach(it, second)
            assert second.control.is_paused
            await reach(it, first)
            assert not second.control.is_paused
            assert are_paused(it) == {False}

    run_virtual(scenario())


def test_an_end_that_comes_before_all_are_heard_ends_it() -> None:
    async def scenario() -> None:
        async with front() as it:
            first, second = await it.add("a.1"), await it.add("b.1")
            request, answer = first.start_request("kept", LONG)
            await first.until_decoding()
            await first.control.pause(PauseMode.RETRACT)
            await replace(it, first, second)
            await reach(it, first)
            resuming = asyncio.create_task(first.control.resume())
            assert await answer == expected(request)
            assert are_paused(it) == {False}
            assert not resuming.done(), "the other has not heard of it"
            await reach(it, second)
            await resuming
            assert not second.control.is_paused

    run_virtual(scenario())

"""A pause that ends requests is answered only when no engine may compute for one of them any more."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest
from tests.scheduler.cluster import cluster, expected, until_phase
from tests.scheduler.fixtures import make_request
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.errors import RequestAbortedError
from dualpath.core.ids import RequestId
from dualpath.core.pause import PauseMode
from dualpath.scheduler.demand import Demand

ENDING = [PauseMode.ABORT, PauseMode.WAIT]


@pytest.mark.parametrize("end", ["speaks", "dies", "says nothing"])
@pytest.mark.parametrize("phase", ["prefilling", "decoding"])
@pytest.mark.parametrize("mode", ENDING)
def test_an_engine_that_falls_silent_while_a_pause_waits_for_its_request(mode: PauseMode, phase: str, end: str) -> None:
    async def scenario() -> None:
        async with cluster() as it:
            engine = it.prefill[0] if phase == "prefilling" else it.decode[0]
            for each in it.decode:
                each.lossy_release = True
            engine.delay_s["prefill" if phase == "prefilling" else "step"] = 1.0
            request = make_request("silent", max_tokens=3)
            answer = it.start(request)
            await until_phase(it, request, phase)
            pausing = asyncio.create_task(it.service.control.pause(mode))
            await asyncio.sleep(0.001)  # engines were asked, and all were there
            engine.fall_silent()
            await asyncio.sleep(it.desk.config.lease_s / 2)
            assert not pausing.done(), "it may compute on"
            assert not it.service._coordinator.attempts
            if end == "speaks":
                engine.speak()
            elif end == "dies":
                engine.die()
            await asyncio.sleep(5.0)
            assert pausing.done() == (end != "says nothing")
            await asyncio.sleep(it.desk.config.lease_s)
            await pausing
            if end == "dies":
                engine.come_back()
            else:
                engine.speak()
            await it.service.control.resume()
            if mode is PauseMode.ABORT:
                with pytest.raises(RequestAbortedError):
                    await answer
            else:
                assert await answer == expected(request)

    run_virtual(scenario())


def test_a_silent_engine_does_not_hold_up_a_pause_that_is_over() -> None:
    async def scenario() -> None:
        async with cluster() as it:
            request = make_request("silent", max_tokens=3)
            it.decode[0].delay_s["step"] = 1.0
            answer = it.start(request)
            await until_phase(it, request, "decoding")
            pausing = asyncio.create_task(it.service.control.pause(PauseMode.WAIT))
            await asyncio.sleep(0.1)
            it.decode[0].fall_silent()
            await asyncio.sleep(1.0)
            await it.service.control.resume()
            await asyncio.sleep(0.1)
            assert pausing.done()
            it.decode[0].speak()
            assert await answer == expected(request)

    run_virtual(scenario())


@pytest.mark.parametrize("mode", ENDING)
def test_nodes_that_have_not_heard_that_a_gateway_is_given_up(mode: PauseMode) -> None:
    async def scenario() -> None:
        async with cluster() as it:
            heard = asyncio.Event()

            async def end_caller(caller: str) -> tuple[()]:
                await heard.wait()
                return ()

            nodes = {
                engine.info.node_id: SimpleNamespace(end_caller=end_caller) for engine in (*it.prefill, *it.decode)
            }
            it.desk._nodes = cast(dict, nodes)
            seat = it.desk.seat("gateway.1")
            await seat.place(Demand(RequestId("gateway.1/r"), -1, 8, 16))
            it.desk.vacate("gateway.1", seat)
            pausing = asyncio.create_task(it.service.control.pause(mode))
            await asyncio.sleep(3.0)
            assert not pausing.done(), "its requests may be computed"
            heard.set()
            await asyncio.sleep(3.0)
            assert pausing.done()
            await it.service.control.resume()

    run_virtual(scenario())

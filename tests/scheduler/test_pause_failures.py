"""Pausing and updating where something fails meanwhile: nothing stays shut, nothing spins, nothing waits for ever."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from tests.scheduler.cluster import Cluster, cluster, expected, until_phase
from tests.scheduler.fixtures import NAMESPACE, make_request
from tests.scheduler.test_opaque import ANSWER, Speaker, events_of, opaque
from tests.scheduler.virtual_time import LoopRuntime, run_virtual

from dualpath.core.errors import (
    ConfigError,
    EngineGoneError,
    EngineLostError,
    InvalidRequestError,
    RequestAbortedError,
)
from dualpath.core.pause import PauseMode
from dualpath.protocol.wire import NodeReport
from dualpath.scheduler.desk.server import DeskServer
from dualpath.scheduler.gate import Gate


@pytest.mark.parametrize("mode", [PauseMode.RETRACT, PauseMode.KEEP])
def test_an_opaque_answer_that_has_begun_goes_on_after_a_pause(mode: PauseMode) -> None:
    async def scenario() -> None:
        async with cluster() as it:
            speaker, request = Speaker(it.decode[0]), opaque()
            speaker.pause_s = 0.05
            answer = asyncio.create_task(events_of(it, request))
            await until_phase(it, request, "decoding")
            await asyncio.sleep(0.12)
            await it.service.control.pause(mode)
            await it.service.control.resume()
            assert len(await answer) == len(ANSWER)
            assert it.record(request).num_retries == 0

    run_virtual(scenario())


@pytest.mark.parametrize("mode", [PauseMode.ABORT, PauseMode.WAIT])
def test_an_engine_that_hangs_does_not_hold_up_a_pause_that_freezes_nothing(mode: PauseMode) -> None:
    async def scenario() -> None:
        async with cluster() as it:
            it.prefill[0].delay_s["prefill"] = 1e9
            request = make_request("hung", max_tokens=3)
            answer = it.start(request)
            await until_phase(it, request, "prefilling")
            pausing = asyncio.create_task(it.service.control.pause(mode))
            await asyncio.sleep(2 * it.service.control._coordinator.steps.config.prefill_timeout_s)
            assert pausing.done(), "its deadline passed long ago"
            await pausing
            it.prefill[0].delay_s["prefill"] = 0.01
            await it.service.control.resume()
            if mode is PauseMode.ABORT:
                with pytest.raises(RequestAbortedError):
                    await answer
            else:
                assert await answer == expected(request)

    run_virtual(scenario())


def test_silence_counts_anew_only_from_when_engines_may_compute_again() -> None:
    async def scenario() -> None:
        gate, loop = Gate(), asyncio.get_running_loop()
        gate.close(freezes=False)
        await asyncio.sleep(5.0)
        gate.open()
        assert gate.counts_from_s() == float("-inf")
        gate.close(freezes=True)
        await asyncio.sleep(5.0)
        assert gate.counts_from_s() == loop.time()
        gate.close(freezes=False)
        thawed_s = loop.time()
        await asyncio.sleep(5.0)
        assert gate.counts_from_s() == thawed_s
        gate.open()
        assert gate.counts_from_s() == thawed_s

    run_virtual(scenario())


@pytest.mark.parametrize("comes_back", [True, False])
@pytest.mark.parametrize("mode", PauseMode)
def test_a_pause_waits_for_a_lost_engine_while_that_may_compute(mode: PauseMode, comes_back: bool) -> None:
    async def scenario() -> None:
        async with cluster() as it:
            config, loop = it.desk.config, asyncio.get_running_loop()
            it.decode[0].trouble = EngineLostError("no line")
            await it.desk.health.check(it.decode[0].info.engine_id)
            asked_s = loop.time()
            pausing = asyncio.create_task(it.service.control.pause(mode))
            await asyncio.sleep(config.lease_s / 2)
            assert not pausing.done()
            if comes_back:
                it.decode[0].trouble = None
            await pausing
            assert it.decode[0].is_paused == (comes_back and mode.keeps)
            waited_s = loop.time() - asked_s
            assert waited_s == pytest.approx(config.lease_s / (2 if comes_back else 1), abs=2 * config.probe_interval_s)
            it.decode[0].trouble = None
            await it.service.control.resume()
            await _check_serves(it)

    run_virtual(scenario())


@pytest.mark.parametrize("mode", PauseMode)
def test_a_pause_waits_for_no_engine_once_requests_are_to_go_on(mode: PauseMode) -> None:
    async def scenario() -> None:
        async with cluster() as it:
            it.decode[0].trouble = EngineLostError("no line")
            await it.desk.health.check(it.decode[0].info.engine_id)
            pausing = asyncio.create_task(it.service.control.pause(mode))
            await asyncio.sleep(1.0)
            await it.service.control.resume()
            await asyncio.sleep(1.0)
            assert pausing.done()
            it.decode[0].trouble = None
            await _check_serves(it)

    run_virtual(scenario())


def test_a_pause_does_not_wait_for_an_engine_whose_process_has_ended() -> None:
    async def scenario() -> None:
        async with cluster() as it:
            it.decode[0].trouble = EngineGoneError("killed")
            await it.desk.health.check(it.decode[0].info.engine_id)
            asked_s = asyncio.get_running_loop().time()
            await it.service.control.pause(PauseMode.KEEP)
            assert asyncio.get_running_loop().time() - asked_s < 1.0

    run_virtual(scenario())


@pytest.mark.parametrize("mode", PauseMode)
def test_a_pause_that_an_engine_is_not_made_for_is_refused_at_once(mode: PauseMode) -> None:
    """A vLLM server that was started without a door."""

    async def scenario() -> None:
        async with cluster(decode=2) as it:

            async def pause() -> None:
                raise ConfigError("there is no door")

            it.decode[1].pause = pause  # type: ignore[method-assign]
            for _ in range(2):
                asked_s = asyncio.get_running_loop().time()
                if mode.keeps:
                    with pytest.raises(InvalidRequestError, match="no door"):
                        await it.service.control.pause(mode)
                else:
                    await it.service.control.pause(mode)
                    await it.service.control.resume()
                assert asyncio.get_running_loop().time() - asked_s < 1.0
                assert not it.service.control.is_paused
                assert not any(engine.is_paused for engine in (*it.prefill, *it.decode))
                assert not it.desk.membership.num_lost
            await _check_serves(it)

    run_virtual(scenario())


def test_an_engine_that_is_not_made_for_a_pause_waits_for_its_end() -> None:
    """It came when others stood still."""

    async def scenario() -> None:
        async with cluster(decode=2) as it:

            async def pause() -> None:
                raise ConfigError("there is no door")

            it.decode[1].fall_silent()
            it.desk.mark_lost(it.decode[1].info.engine_id)
            pausing = asyncio.create_task(it.service.control.pause(PauseMode.KEEP))
            await asyncio.sleep(1.0)
            it.decode[1].pause = pause  # type: ignore[method-assign]
            it.decode[1].speak()
            await pausing
            await asyncio.sleep(5.0)
            assert it.desk.membership.num_lost + it.desk.peering.num_apart
            await it.service.control.resume()
            await asyncio.sleep(10.0)
            assert not it.desk.membership.num_lost + it.desk.peering.num_apart
            await _check_serves(it)

    run_virtual(scenario())


def test_a_pause_that_fails_leaves_the_door_open(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with cluster() as it:

            async def fail(mode: PauseMode) -> bool:
                raise EngineLostError("the desk is away")

            monkeypatch.setattr(it.service.control, "_desk", SimpleNamespace(pause=fail))
            with pytest.raises(EngineLostError):
                await it.service.control.pause(PauseMode.KEEP)
            assert not it.service.control.is_paused
            await _check_serves(it)

    run_virtual(scenario())


def test_requests_placed_while_the_door_is_shut_wait_for_it() -> None:
    """The desk gives them engines, for another gateway has not paused it yet: they ask again once, not in a loop."""

    async def scenario() -> None:
        async with cluster() as it:
            it.service.control._gate.close(freezes=True)
            num_asked, place = 0, it.service._coordinator.desk.place

            async def count(*args: object) -> object:
                nonlocal num_asked
                num_asked += 1
                return await place(*args)  # type: ignore[arg-type]

            it.service._coordinator.desk.place = count  # type: ignore[assignment, method-assign]
            request = make_request("early", max_tokens=2)
            answer = it.start(request)
            await asyncio.sleep(10_000.0)
            assert num_asked == 1
            it.service.control._gate.open()
            assert await answer == expected(request)

    run_virtual(scenario())


def test_a_desk_that_cannot_tell_engines_to_go_on_still_places_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with cluster() as it:
            await it.service.control.pause(PauseMode.KEEP)
            standstill = it.desk.standstill

            async def fail() -> None:
                raise EngineLostError("a bug")

            with monkeypatch.context() as patch:
                patch.setattr(standstill, "_resume_engines", fail)
                with pytest.raises(EngineLostError):
                    await it.service.control.resume()
            await _check_serves(it)

    run_virtual(scenario())


def test_two_silent_gateways_are_given_up_while_one_of_them_comes_back() -> None:
    async def scenario() -> None:
        async with cluster(start=False) as it:
            await it.scheduler.start(gateways=["a.1", "b.1"])
            report = NodeReport(NAMESPACE, "fake", 4096, (), b"", "host", 1)
            server = DeskServer(it.desk, report, LoopRuntime(), 2.0)
            end_caller = server._server.end_caller

            async def slowly(caller: str) -> None:
                if caller == "a.1":
                    await server._give_up("b.1")
                await end_caller(caller)

            server._server.end_caller = slowly  # type: ignore[method-assign]
            await asyncio.sleep(10.0)
            assert not server._seats
            assert server._silent_s == {}

    run_virtual(scenario())


def test_an_update_whose_caller_leaves_is_over_before_the_next_begins() -> None:
    async def scenario() -> None:
        async with cluster() as it:
            updates = it.desk.updates
            order: list[str] = []
            updates._open_namespace = _nothing  # type: ignore[assignment]
            commit = updates._commit

            async def noted(there: object, epoch: object) -> None:
                order.append("begin")
                await commit(there, epoch)  # type: ignore[arg-type]
                order.append("end")

            updates._commit = noted  # type: ignore[method-assign, assignment]
            it.decode[0].delay_s["use_weights"] = it.prefill[0].delay_s["use_weights"] = 5.0
            it.decode[0].delay_s["load_weights"] = it.prefill[0].delay_s["load_weights"] = 0.01
            first = asyncio.create_task(updates.update("/first"))
            await asyncio.sleep(1.0)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            await updates.update("/second")
            assert order == ["begin", "end", "begin", "end"]
            assert it.desk.updates.epoch.weights.directory == "/second"
            assert {engine.has.directory for engine in (*it.prefill, *it.decode)} == {"/second"}

    run_virtual(scenario())


async def _check_serves(it: Cluster) -> None:
    request = make_request("next", max_tokens=2)
    assert await it.run(request) == expected(request)


async def _nothing(namespace: object) -> None: ...

"""How often, how soon and for how long: what uses up retries, what costs time only, and what makes up for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from tests.scheduler.cluster import cluster, expected, until_phase
from tests.scheduler.fakes import FakePrefill
from tests.scheduler.fixtures import BLOCK, make_request
from tests.scheduler.virtual_time import LoopRuntime, run_virtual

from dualpath.core.errors import (
    DeadlineExceededError,
    DualPathError,
    EngineBugError,
    EngineGoneError,
    EngineLostError,
    EngineSilentError,
    KvCorruptError,
    PathBrokenError,
    PreemptedError,
)
from dualpath.core.ids import RequestId
from dualpath.core.request import TokenEvent
from dualpath.protocol.api import PrefillOrder
from dualpath.scheduler.backoff import Backoff
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.retry_policy import Retries

FAULTS = [EngineLostError("x"), EngineBugError("x"), DeadlineExceededError("x")]
TIME_ONLY = [PathBrokenError("x"), KvCorruptError("x"), EngineSilentError("x"), EngineGoneError("x")]


def run_retries(**settings: float) -> Retries:
    return Retries(SchedulerConfig(**settings), LoopRuntime())  # type: ignore[arg-type]


@pytest.mark.parametrize("cause", FAULTS, ids=repr)
def test_an_engines_own_faults_are_bounded_by_number(cause: DualPathError) -> None:
    async def scenario() -> None:
        retries = run_retries(max_retries=3)
        assert [retries.failed(cause) for _ in range(4)] == [True, True, True, False]

    run_virtual(scenario())


@pytest.mark.parametrize("cause", TIME_ONLY, ids=repr)
def test_what_is_nobodys_fault_is_bounded_by_time(cause: DualPathError) -> None:
    async def scenario() -> None:
        retries = run_retries(max_retries=0, retry_budget_s=10.0)
        for _ in range(100):
            assert retries.failed(cause)
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.1)
        assert not retries.failed(cause)

    run_virtual(scenario())


def test_what_fails_slowly_is_tried_as_often() -> None:
    async def scenario() -> None:
        retries = run_retries(max_retries=2, retry_budget_s=10.0)
        answers = []
        for _ in range(3):
            answers.append(retries.failed(PathBrokenError("a deadline of half a minute passed")))
            await asyncio.sleep(30.0)
        assert answers == [True, True, False]

    run_virtual(scenario())


def test_waiting_for_engines_does_not_count() -> None:
    async def scenario() -> None:
        retries = run_retries(max_retries=0, retry_budget_s=10.0)
        retries.failed(EngineGoneError("x"))
        await asyncio.sleep(200.0)
        retries.waited(200.0)
        assert retries.failed(EngineGoneError("x"))
        await asyncio.sleep(10.1)
        assert not retries.failed(EngineGoneError("x"))

    run_virtual(scenario())


def test_progress_makes_up_for_failures() -> None:
    async def scenario() -> None:
        retries = run_retries(max_retries=1, retry_budget_s=10.0)
        retries.failed(PathBrokenError("x"))
        retries.failed(PathBrokenError("x"))
        assert retries.recomputes
        retries.further()
        assert retries.recomputes, "a further phase says nothing of what is moved"
        await asyncio.sleep(11.0)
        assert retries.failed(PathBrokenError("x")), "time begins anew"
        assert retries.failed(EngineLostError("x"))
        retries.token(is_decoded=True)
        assert not retries.recomputes
        assert retries.failed(EngineLostError("x")), "a token makes up for faults, too"
        assert not retries.failed(EngineLostError("x"))

    run_virtual(scenario())


def test_a_token_before_what_was_moved_is_decoded_makes_up_for_no_damage() -> None:
    async def scenario() -> None:
        retries = run_retries(max_retries=0, retry_budget_s=10.0)
        retries.failed(EngineGoneError("x"))
        await asyncio.sleep(6.0)
        retries.token(is_decoded=False)
        await asyncio.sleep(6.0)
        assert retries.failed(KvCorruptError("x")), "the death was made up for"
        for _ in range(9):
            await asyncio.sleep(1.0)
            retries.token(is_decoded=False)
            assert retries.failed(KvCorruptError("x"))
            assert retries.recomputes
            assert not retries.failed(EngineLostError("dropped"))
            retries.token(is_decoded=False)
        await asyncio.sleep(1.1)
        retries.token(is_decoded=False)
        assert not retries.failed(KvCorruptError("x"))

    run_virtual(scenario())


def test_preemptions_cost_nothing() -> None:
    async def scenario() -> None:
        retries = run_retries(max_retries=0)
        assert all(retries.failed(PreemptedError("x")) for _ in range(100))
        assert retries.pause_s() == 0.0

    run_virtual(scenario())


def test_pauses_double_up_to_the_longest_and_are_drawn() -> None:
    async def scenario() -> None:
        config, runtime = SchedulerConfig(pause_s=0.05, pause_max_s=2.0), LoopRuntime()
        one, other = Backoff(config, runtime), Backoff(config, runtime)
        pauses = [one.next_s() for _ in range(10)]
        longest = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 2.0]
        assert all(most / 2 <= pause < most for pause, most in zip(pauses, longest, strict=True))
        assert pauses != [other.next_s() for _ in range(10)]
        one.reset()
        assert one.next_s() < 0.05

    run_virtual(scenario())


# -- in the service ---------------------------------------------------------------------------------------------------


def test_retries_do_not_come_at_once() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(max_retries=5)) as c:
            c.prefill[0].faults["batch"].extend([EngineLostError("dropped")] * 5)
            request = make_request()
            assert await c.run(request) == expected(request)
            assert c.record(request).phases_s["queued"] > (0.05 + 0.1 + 0.2 + 0.4 + 0.8) / 2

    run_virtual(scenario())


def test_a_request_outlives_deaths_that_may_be_chance() -> None:
    async def scenario() -> None:
        async with cluster(prefill=2, config=SchedulerConfig(max_retries=0, probe_interval_s=0.1)) as c:
            c.decode[0].lossy_release = True
            for engine in c.prefill:
                engine.delay_s["prefill"] = 3.0
            request = make_request(max_tokens=3)
            task = c.start(request)
            for _ in range(7):
                await asyncio.sleep(2.0)
                busy = next((engine for engine in c.prefill if engine.active), None)
                if busy is not None:
                    busy.die()
                    await asyncio.sleep(0.5)
                    busy.come_back()
            assert await task == expected(request)
            assert c.record(request).num_retries >= 4

    run_virtual(scenario())


def test_a_request_that_ends_every_engine_it_comes_to_has_not_all_of_them_down_at_once() -> None:
    async def scenario() -> None:
        async with cluster(prefill=4, config=SchedulerConfig(retry_budget_s=10.0)) as c:
            c.decode[0].lossy_release = True
            num_down: list[int] = []

            def poisoned(engine: FakePrefill) -> Callable[[PrefillOrder], AsyncIterator[TokenEvent | None]]:
                prefill = engine.prefill

                def call(order: PrefillOrder) -> AsyncIterator[TokenEvent | None]:
                    if order.request.request_id.startswith("poison"):
                        engine.fall_silent()
                        asyncio.get_running_loop().call_later(8.0, engine.come_back)
                        num_down.append(sum(other.trouble is not None for other in c.prefill))
                    return prefill(order)

                return call

            for engine in c.prefill:
                engine.prefill = poisoned(engine)  # type: ignore[method-assign]
            poison = c.start(make_request("poison"))
            while not poison.done():
                await asyncio.sleep(1.0)
                request = make_request(f"innocent{asyncio.get_running_loop().time()}")
                assert await c.run(request) == expected(request)
            with pytest.raises(EngineLostError, match="8 engines were lost in a row while they had it"):
                await poison
            assert max(num_down) == 2
            assert len(num_down) == 8
            await asyncio.sleep(30.0)

    run_virtual(scenario())


def test_a_request_waits_out_a_long_absence_of_its_engines() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(retry_budget_s=10.0, max_retries=0)) as c:
            c.decode[0].lossy_release = True
            request = make_request(max_tokens=40)
            task = c.start(request)
            await until_phase(c, request, "decoding")
            for _ in range(2):
                c.decode[0].die()
                await asyncio.sleep(100.0)
                c.decode[0].come_back()
                await asyncio.sleep(1.5)
            assert await task == expected(request)

    run_virtual(scenario())


def test_a_request_that_comes_no_further_waits_out_absence_after_absence() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(retry_budget_s=10.0, max_retries=0)) as c:
            c.decode[0].lossy_release = True
            c.prefill[0].delay_s["prefill"] = 1.0
            task = c.start(make_request())
            for _ in range(3):
                while not c.prefill[0].active:  # noqa: ASYNC110  (an engine has no event for it)
                    await asyncio.sleep(0.01)
                c.decode[0].die()
                await asyncio.sleep(100.0)
                c.decode[0].come_back()
            assert await task == expected(make_request())

    run_virtual(scenario())


def test_an_answer_outlives_more_faults_than_retries_if_tokens_come_between_them() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(max_retries=1)) as c:
            request = make_request(max_tokens=200)
            task = c.start(request)
            while not task.done():
                await asyncio.sleep(0.4)
                if len(c.decode[0].faults["step"]) == 0:
                    c.decode[0].faults["step"].append(EngineLostError("dropped"))
            c.decode[0].faults.clear()
            assert await task == expected(request)
            assert c.record(request).num_retries > 4

    run_virtual(scenario())


def test_a_further_phase_makes_time_begin_anew() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(max_retries=0, retry_budget_s=1.0)) as c:
            c.decode[0].faults["reserve"].extend([EngineSilentError("x")] * 4)
            c.prefill[0].faults["prefill"].extend([PathBrokenError("x")] * 4)
            assert await c.run(make_request()) == expected(make_request())
            assert (c.record(make_request()).total_s or 0.0) > 1.0

    run_virtual(scenario())


def test_what_is_found_damaged_when_it_is_to_be_decoded_is_computed_and_then_given_up() -> None:
    """Each attempt brings a token: the one of the prefill engine."""

    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(max_retries=0, retry_budget_s=10.0)) as c:
            request = make_request(num_prompt=4 * BLOCK + 1, max_tokens=1000)
            c.store_prompt(request.prompt_token_ids)
            c.decode[0].faults["admit"].extend([KvCorruptError("flipped")] * 1000)
            with pytest.raises(KvCorruptError):
                await c.run(request)
            assert 10.0 < (c.record(request).total_s or 0.0) < 20.0
            reading = {name for engine in (*c.prefill, *c.decode) for op, name in engine.log if op == "read"}
            assert reading == {RequestId("r"), RequestId("r~1")}
            c.decode[0].faults["admit"].clear()
            assert await c.run(make_request("later")) == expected(make_request("later"))

    run_virtual(scenario())


@pytest.mark.parametrize("error", [KvCorruptError("flipped"), PathBrokenError("cut")], ids=repr)
def test_what_is_damaged_between_engines_again_is_computed_instead_of_read(error: Exception) -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(max_retries=0)) as c:
            request = make_request(num_prompt=4 * BLOCK + 1)
            c.store_prompt(request.prompt_token_ids)
            c.prefill[0].faults["batch"].extend([error] * 3)
            assert await c.run(request) == expected(request)
            reading = {
                request_id for engine in (*c.prefill, *c.decode) for op, request_id in engine.log if op == "read"
            }
            assert reading == {RequestId("r"), RequestId("r~1")}, "the third and the fourth attempt read nothing"
            assert c.record(request).num_retries == 3

    run_virtual(scenario())

"""How often, how soon and for how long: what uses up retries, what costs time only, and what makes up for it."""

from __future__ import annotations

import asyncio

import pytest
from tests.scheduler.cluster import cluster, expected, until_phase
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
from dualpath.scheduler.backoff import Backoff
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.patience import Patience

FAULTS = [EngineLostError("x"), EngineBugError("x"), DeadlineExceededError("x")]
TIME_ONLY = [PathBrokenError("x"), KvCorruptError("x"), EngineSilentError("x"), EngineGoneError("x")]


def run_patience(**settings: float) -> Patience:
    return Patience(SchedulerConfig(**settings), LoopRuntime())  # type: ignore[arg-type]


@pytest.mark.parametrize("cause", FAULTS, ids=repr)
def test_an_engines_own_faults_are_bounded_by_number(cause: DualPathError) -> None:
    async def scenario() -> None:
        patience = run_patience(max_retries=3)
        assert [patience.failed(cause) for _ in range(4)] == [True, True, True, False]

    run_virtual(scenario())


@pytest.mark.parametrize("cause", TIME_ONLY, ids=repr)
def test_what_is_nobodys_fault_is_bounded_by_time(cause: DualPathError) -> None:
    async def scenario() -> None:
        patience = run_patience(max_retries=0, retry_budget_s=10.0)
        for _ in range(100):
            assert patience.failed(cause)
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.1)
        assert not patience.failed(cause)

    run_virtual(scenario())


def test_what_fails_slowly_is_tried_as_often() -> None:
    async def scenario() -> None:
        patience = run_patience(max_retries=2, retry_budget_s=10.0)
        answers = []
        for _ in range(3):
            answers.append(patience.failed(PathBrokenError("a deadline of half a minute passed")))
            await asyncio.sleep(30.0)
        assert answers == [True, True, False]

    run_virtual(scenario())


def test_waiting_for_engines_does_not_count() -> None:
    async def scenario() -> None:
        patience = run_patience(max_retries=0, retry_budget_s=10.0)
        patience.failed(EngineGoneError("x"))
        await asyncio.sleep(200.0)
        patience.waited(200.0)
        assert patience.failed(EngineGoneError("x"))
        await asyncio.sleep(10.1)
        assert not patience.failed(EngineGoneError("x"))

    run_virtual(scenario())


def test_progress_makes_up_for_failures() -> None:
    async def scenario() -> None:
        patience = run_patience(max_retries=1, retry_budget_s=10.0)
        patience.failed(PathBrokenError("x"))
        patience.failed(PathBrokenError("x"))
        assert patience.recomputes
        patience.further()
        assert patience.recomputes, "a further phase says nothing of what is moved"
        await asyncio.sleep(11.0)
        assert patience.failed(PathBrokenError("x")), "time begins anew"
        assert patience.failed(EngineLostError("x"))
        patience.token()
        assert not patience.recomputes
        assert patience.failed(EngineLostError("x")), "a token makes up for faults, too"
        assert not patience.failed(EngineLostError("x"))

    run_virtual(scenario())


def test_preemptions_cost_nothing() -> None:
    async def scenario() -> None:
        patience = run_patience(max_retries=0)
        assert all(patience.failed(PreemptedError("x")) for _ in range(100))
        assert patience.pause_s() == 0.0

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


def test_a_request_outlives_any_number_of_deaths() -> None:
    async def scenario() -> None:
        async with cluster(prefill=2, config=SchedulerConfig(max_retries=0, probe_interval_s=0.1)) as c:
            c.decode[0].lossy_release = True
            for engine in c.prefill:
                engine.delay_s["prefill"] = 3.0
            request = make_request(max_tokens=3)
            task = c.start(request)
            for _ in range(8):
                await asyncio.sleep(2.0)
                busy = next((engine for engine in c.prefill if engine.active), None)
                if busy is not None:
                    busy.die()
                    await asyncio.sleep(0.5)
                    busy.come_back()
            assert await task == expected(request)
            assert c.record(request).num_retries >= 4

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

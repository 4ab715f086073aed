"""What goes wrong and what the client sees of it: usually nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.scheduler.cluster import cluster, expected, take, until_phase
from tests.scheduler.fixtures import BLOCK, keys_of, make_request
from tests.scheduler.tracebacks import Tracebacks
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.errors import DeadlineExceededError, EngineBugError, EngineLostError, TransferError
from dualpath.core.ids import RequestId
from dualpath.core.request import Request
from dualpath.protocol.api import DecodeOrder, DecodeStep
from dualpath.scheduler.config import SchedulerConfig

PHASES = ["queued", "placed", "reading", "ready", "prefilling", "handed_over", "decoding"]


@pytest.mark.parametrize("phase", PHASES)
def test_cancelling_in_any_phase_leaves_nothing(phase: str) -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(path_policy="split", beta_tokens=1)) as c:
            request = make_request(num_prompt=4 * BLOCK + 1, max_tokens=50)
            c.store_prompt(request.prompt_token_ids)
            blocker = None
            if phase == "queued":
                blocker = c.start(make_request("blocker", num_prompt=10))
                await asyncio.sleep(0.001)
            task = c.start(request)
            await until_phase(c, request, phase)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert c.record(request).outcome == "cancelled"
            if blocker is not None:
                await blocker

    run_virtual(scenario())


def test_closing_the_stream_cancels_and_releases_in_order() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            request = make_request(max_tokens=50)
            stream = c.service.generate(request)
            assert await take(stream, 5) == expected(request)[:5]
            await stream.aclose()
            await c.quiet()
            assert c.record(request).outcome == "cancelled"
            assert ("release", request.request_id) in c.decode[0].log

    run_virtual(scenario())


def test_the_decode_side_is_kept_while_prefill_may_still_write_to_it() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            request = make_request(max_tokens=50)
            c.prefill[0].busy_releases = 4
            task = c.start(request)
            await until_phase(c, request, "prefilling")
            task.cancel()
            await asyncio.sleep(0.2)
            assert c.decode[0].slots.held, "four releases with pauses of 50, 100, 200, 400 ms"
            await asyncio.sleep(1.0)
            assert not c.decode[0].slots.held

    run_virtual(scenario())


def test_the_decode_side_is_kept_also_from_a_lost_prefill_engine_that_does_not_answer() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(release_timeout_s=1.0, probe_interval_s=1e6)) as c:
            request = make_request(max_tokens=50)
            c.prefill[0].delay_s["release"] = 1e6
            task = c.start(request)
            await until_phase(c, request, "prefilling")
            c.desk.mark_lost(c.prefill[0].info.engine_id)
            await asyncio.sleep(30.0)
            assert c.decode[0].slots.held, "its forward may still run"
            c.prefill[0].delay_s["release"] = 0.01
            c.desk.membership.mark_back(c.prefill[0].info.engine_id)
            assert await task == expected(request)

    run_virtual(scenario())


@pytest.mark.parametrize("policy", ["prefill", "decode", "split"])
def test_a_block_that_is_gone_cuts_the_hit_and_is_forgotten(policy: str) -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(path_policy=policy)) as c:
            request = make_request(num_prompt=6 * BLOCK + 1)
            c.store_prompt(request.prompt_token_ids)
            keys = keys_of(request.prompt_token_ids)
            c.storage.blocks.discard(keys[2])
            assert await c.run(request) == expected(request)
            assert c.record(request).num_hit_tokens == 2 * BLOCK
            assert c.record(request).num_recomputed_blocks == 4
            await c.quiet()
            assert keys[2] in c.storage.blocks, "recomputed and written again"
            again = replace(request, request_id=RequestId("again"))
            assert await c.run(again) == expected(again)
            assert c.record(again).num_hit_tokens == 6 * BLOCK

    run_virtual(scenario())


@pytest.mark.parametrize(("policy", "broken"), [("prefill", "prefill"), ("decode", "decode"), ("split", "decode")])
def test_a_block_that_fails_on_one_side_is_read_on_the_other(policy: str, broken: str) -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(path_policy=policy)) as c:
            request = make_request(num_prompt=6 * BLOCK + 1)
            c.store_prompt(request.prompt_token_ids)
            engine = c.prefill[0] if broken == "prefill" else c.decode[0]
            engine.failing_keys.update(keys_of(request.prompt_token_ids)[3:5])
            assert await c.run(request) == expected(request)
            record = c.record(request)
            assert record.num_hit_tokens == 6 * BLOCK
            assert sum(record.storage_read_bytes.values()) == 6
            assert record.num_recomputed_blocks == 0

    run_virtual(scenario())


def test_a_block_that_fails_on_both_sides_is_recomputed() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            request = make_request(num_prompt=6 * BLOCK + 1)
            c.store_prompt(request.prompt_token_ids)
            for engine in (c.prefill[0], c.decode[0]):
                engine.failing_keys.add(keys_of(request.prompt_token_ids)[4])
            assert await c.run(request) == expected(request)
            assert c.record(request).num_hit_tokens == 4 * BLOCK
            assert c.record(request).num_recomputed_blocks == 2

    run_virtual(scenario())


@pytest.mark.parametrize(
    "error", [TransferError("the NIC is down"), KeyError("a bug"), EngineBugError("a bug")], ids=repr
)
def test_a_reading_call_that_fails_as_a_whole_falls_back_too(error: Exception, tracebacks: Tracebacks) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            request = make_request(num_prompt=6 * BLOCK + 1)
            c.store_prompt(request.prompt_token_ids)
            c.prefill[0].faults["read"].append(error)
            assert await c.run(request) == expected(request)
            assert c.record(request).num_retries == 0
            assert c.record(request).num_hit_tokens == 6 * BLOCK
            assert c.record(request).storage_read_bytes == {"prefill": 0, "decode": 6}

    run_virtual(scenario())
    is_bug = isinstance(error, KeyError)
    assert tracebacks.take() == ({"dualpath.scheduler.engine_call: KeyError('a bug')"} if is_bug else set())


def test_a_decode_side_whose_late_reads_may_still_write_is_left_for_a_new_attempt_without_reads() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(path_policy="split", read_timeout_s=5.0)) as c:
            request = make_request(num_prompt=6 * BLOCK + 1)
            c.store_prompt(request.prompt_token_ids)
            c.decode[0].delay_s["read"] = 100.0
            assert await c.run(request) == expected(request)
            record = c.record(request)
            assert record.num_retries == 1
            assert record.num_recomputed_blocks == 6
            assert ("read", request.request_id) in c.prefill[0].log
            assert ("read", RequestId(f"{request.request_id}~1")) not in c.prefill[0].log + c.decode[0].log

    run_virtual(scenario())


@pytest.mark.parametrize("num_turns", range(12))
def test_cancelling_at_any_turn_of_a_second_reading_leaves_nothing(num_turns: int) -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(path_policy="split")) as c:
            request = make_request(num_prompt=6 * BLOCK + 1)
            c.store_prompt(request.prompt_token_ids)
            for engine in (c.prefill[0], c.decode[0]):
                engine.failing_keys.update(keys_of(request.prompt_token_ids))
                engine.delay_s["read"] = 0.0
            task = c.start(request)
            await until_phase(c, request, "reading")
            for _ in range(num_turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run_virtual(scenario())


OPERATIONS = [
    ("prefill", "reserve"),
    ("prefill", "read"),
    ("prefill", "batch"),
    ("prefill", "prefill"),
    ("decode", "reserve"),
    ("decode", "read"),
    ("decode", "admit"),
    ("decode", "step"),
]


@pytest.mark.parametrize(("role", "operation"), OPERATIONS)
@pytest.mark.parametrize("error", [EngineLostError("lost"), DeadlineExceededError("late")])
def test_a_failed_call_is_resumed_without_a_gap(role: str, operation: str, error: Exception) -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(path_policy="split")) as c:
            request = make_request(num_prompt=4 * BLOCK + 1, max_tokens=12)
            c.store_prompt(request.prompt_token_ids)
            engine = c.prefill[0] if role == "prefill" else c.decode[0]
            engine.faults[operation].append(error)
            assert await c.run(request) == expected(request)
            record = c.record(request)
            is_read_fallback = (role, operation) == ("prefill", "read") and isinstance(error, DeadlineExceededError)
            assert record.num_retries == (0 if is_read_fallback else 1)
            assert record.num_generated_tokens == 12

    run_virtual(scenario())


def test_an_answer_of_one_token_needs_no_decode_engine() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            request = make_request(max_tokens=1)

            async def decode(order: DecodeOrder) -> AsyncIterator[DecodeStep]:
                raise EngineLostError("lost")
                yield

            c.decode[0].decode = decode  # type: ignore[method-assign]
            assert await c.run(request) == expected(request)
            assert c.record(request).num_retries == 0

    run_virtual(scenario())


def test_a_preempted_request_goes_on_where_it_was() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            request = make_request(max_tokens=30)
            c.decode[0].preempt_after = {request.request_id: 17, RequestId(f"{request.request_id}~1"): 5}
            assert await c.run(request) == expected(request)
            record = c.record(request)
            assert record.num_retries == 2
            assert record.num_hit_tokens == 0, "the client's prompt was no hit"
            assert sum(record.storage_read_bytes.values()) >= 4, "but what had been persisted meanwhile was read"
            assert c.service.ready(), "the engine itself is well"

    run_virtual(scenario())


def test_a_request_is_resumed_after_as_many_preemptions_as_there_are() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(max_retries=0)) as c:
            request = make_request(max_tokens=30)
            ids = [request.request_id, *(RequestId(f"{request.request_id}~{i}") for i in range(1, 10))]
            c.decode[0].preempt_after = dict.fromkeys(ids, 2)
            assert await c.run(request) == expected(request)
            assert c.record(request).num_retries == 10

    run_virtual(scenario())


def test_an_engine_that_dies_is_left_until_it_is_back() -> None:
    async def scenario() -> None:
        async with cluster(prefill=2, decode=2) as c:
            for engine in c.decode:
                engine.lossy_release = True
            requests = [make_request(f"r{i}", max_tokens=40, seed=i) for i in range(6)]
            tasks = [c.start(request) for request in requests]
            await asyncio.sleep(0.2)
            c.decode[0].die()
            c.prefill[1].die()
            assert [await task for task in tasks] == [expected(request) for request in requests]
            assert sum(c.record(request).num_retries for request in requests) >= 3
            late = [make_request(f"late{i}") for i in range(4)]
            await asyncio.gather(*(c.run(request) for request in late))
            assert {(c.record(r).prefill_engine, c.record(r).decode_engine) for r in late} == {("p0", "d1")}
            assert len((await c.service.stats()).engines) == 2
            c.decode[0].come_back()
            c.prefill[1].come_back()
            await asyncio.sleep(5.0)
            again = [make_request(f"again{i}") for i in range(8)]
            await asyncio.gather(*(c.run(request) for request in again))
            used = {c.record(r).prefill_engine for r in again} | {c.record(r).decode_engine for r in again}
            assert used == {"p0", "p1", "d0", "d1"}

    run_virtual(scenario())


def test_requests_wait_while_no_engine_is_there() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.decode[0].lossy_release = True
            c.decode[0].die()
            await c.service.stats()
            assert not c.service.ready()
            request = make_request()
            task = c.start(request)
            await asyncio.sleep(3.0)
            c.decode[0].come_back()
            assert await task == expected(request)
            assert c.record(request).phases_s["queued"] >= 3.0

    run_virtual(scenario())


def test_an_engine_reported_lost_hands_its_requests_over_at_once() -> None:
    async def scenario() -> None:
        async with cluster(decode=2) as c:
            for engine in c.decode:
                engine.delay_s["step"] = 100.0  # hangs, and its own deadline is far away
            request = make_request(max_tokens=2)
            task = c.start(request)
            await until_phase(c, request, "decoding")
            engine = next(e for e in c.decode if e.active)
            other = next(e for e in c.decode if e is not engine)
            other.delay_s["step"] = 0.01
            c.desk.mark_lost(engine.info.engine_id)
            async with asyncio.timeout(5.0):
                assert await task == expected(request)
            c.desk.membership.mark_back(engine.info.engine_id)
            assert c.record(request).decode_engine == other.info.engine_id

    run_virtual(scenario())


def test_a_silent_engine_is_given_up_after_the_deadline() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(prefill_timeout_s=20.0)) as c:
            request = make_request()
            c.prefill[0].delay_s["batch"] = 1e6
            task = c.start(request)
            await asyncio.sleep(10.0)
            c.prefill[0].delay_s["batch"] = 0.01
            assert await task == expected(request)
            assert c.record(request).num_retries == 1

    run_virtual(scenario())


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_an_engine_that_fails_every_request_does_not_attract_them_again(role: str) -> None:
    async def scenario() -> None:
        async with cluster(prefill=2, decode=2, config=SchedulerConfig(max_retries=1, path_policy="prefill")) as c:
            busy = make_request("busy", max_tokens=300)
            task = c.start(busy)
            await until_phase(c, busy, "decoding")
            engines = c.prefill if role == "prefill" else c.decode
            used = c.record(busy).prefill_engine if role == "prefill" else c.record(busy).decode_engine
            idle = next(engine for engine in engines if engine.info.engine_id != used)
            idle.faults["reserve"].extend([DeadlineExceededError("no slots")] * 100)
            for number in range(4):
                request = make_request(f"r{number}", num_prompt=3 * BLOCK)
                c.store_prompt(request.prompt_token_ids)
                assert await c.run(request) == expected(request)
            await task

    run_virtual(scenario())


def test_retries_end() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(max_retries=2)) as c:
            request = make_request()
            c.prefill[0].faults["batch"].extend([EngineLostError("lost")] * 5)
            with pytest.raises(EngineLostError):
                await c.run(request)
            record = c.record(request)
            assert (record.outcome, record.num_retries, record.error) == ("failed", 2, "lost")

    run_virtual(scenario())


def test_a_drawn_seed_is_the_same_on_every_attempt() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            request = make_request(max_tokens=20)
            unseeded: Request = replace(request, sampling=replace(request.sampling, seed=None))
            c.decode[0].preempt_after = {request.request_id: 9}
            answer = await c.run(unseeded)
            steps = {(b - a) % 9973 for a, b in itertools.pairwise(answer)}
            assert steps == {7919}, "one seed: each token lies one position behind the one before"

    run_virtual(scenario())


def test_a_bug_in_an_engine_is_one_failure_of_that_engine(tracebacks: Tracebacks) -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(max_retries=2)) as c:
            c.prefill[0].faults["batch"].extend([KeyError("a bug")] * 5)
            lucky, unlucky = make_request("lucky"), make_request("unlucky")
            with pytest.raises(EngineBugError, match="KeyError"):
                await c.run(unlucky)
            assert c.record(unlucky).num_retries == 2
            assert await c.run(lucky) == expected(lucky)
            assert c.record(lucky).num_retries == 2

    run_virtual(scenario())
    assert tracebacks.take() == {"dualpath.scheduler.engine_call: KeyError('a bug')"}

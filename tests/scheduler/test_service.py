"""A request's life when all goes well: misses, hits, both read paths, records, back-pressure, the next turn."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.scheduler.cluster import cluster, expected, take
from tests.scheduler.fixtures import BLOCK, GEOMETRY, keys_of, make_request
from tests.scheduler.tracebacks import Tracebacks
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.errors import DualPathError, InvalidRequestError, OverloadedError
from dualpath.core.request import FinishReason
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.coordinator import Coordinator
from dualpath.store.header import object_bytes


def test_a_miss_is_computed_streamed_recorded_and_stored() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            request = make_request(num_prompt=20, max_tokens=5)
            events = [event async for event in c.service.generate(request)]
            assert [event.token_id for event in events] == expected(request)
            assert [event.finish_reason for event in events] == [None] * 4 + [FinishReason.LENGTH]
            record = c.record(request)
            assert (record.outcome, record.path, record.num_hit_tokens) == ("finished", "none", 0)
            assert (record.num_prompt_tokens, record.num_generated_tokens, record.num_retries) == (20, 5, 0)
            assert record.ttft_s == pytest.approx(0.01 * 3)  # decode.reserve, batch, prefill
            assert record.ttst_s == pytest.approx(0.01 * 2)  # admission, one step
            assert record.tpot_s == pytest.approx((0.02 + 3 * 0.01) / 4)
            assert record.total_s == pytest.approx(0.08)
            assert sum(record.phases_s.values()) == pytest.approx(record.total_s)
            await c.quiet()
            assert c.storage.blocks == set(keys_of((*request.prompt_token_ids, *expected(request))))
            assert c.prefill[0].peers == {"d0.0"}
            assert c.decode[0].peers == {"p0.0"}

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("policy", "path", "prefill_bytes", "decode_bytes"),
    [("prefill", "prefill", 4, 0), ("decode", "decode", 0, 4), ("shorter", "prefill", 4, 0), ("split", "split", 2, 2)],
)
def test_every_path_reads_all_hit_blocks_once(policy: str, path: str, prefill_bytes: int, decode_bytes: int) -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(path_policy=policy)) as c:
            request = make_request(num_prompt=4 * BLOCK + 1)
            c.store_prompt(request.prompt_token_ids)
            assert await c.run(request) == expected(request)
            record = c.record(request)
            assert record.path == path
            assert record.num_hit_tokens == 4 * BLOCK
            assert record.storage_read_bytes == {"prefill": prefill_bytes, "decode": decode_bytes}
            assert record.num_recomputed_blocks == 0

    run_virtual(scenario())


def test_a_wholly_stored_prompt_still_computes_one_token() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            request = make_request(num_prompt=4 * BLOCK)
            c.store_prompt(request.prompt_token_ids)
            assert await c.run(request) == expected(request)
            assert c.record(request).num_hit_tokens == 3 * BLOCK

    run_virtual(scenario())


def test_the_next_turn_hits_blocks_that_are_still_being_written() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.decode[0].delay_s["write"] = 1.0
            first = make_request("first", num_prompt=20, max_tokens=13)  # 33 tokens, the KV of 32 is computed
            answer = await c.run(first)
            assert not c.storage.blocks, "the last token does not wait for storage"
            prompt = (*first.prompt_token_ids, *answer, 1, 2, 3)
            second = make_request("second", prompt=prompt)
            assert await c.run(second) == expected(second)
            assert c.record(second).num_hit_tokens == 4 * BLOCK
            assert c.record(second).phases_s["placed"] > 0.5

    run_virtual(scenario())


def test_a_block_that_is_not_written_in_time_shortens_the_hit() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(durable_timeout_s=0.5)) as c:
            c.decode[0].delay_s["write"] = 3.0
            first = make_request("first", num_prompt=20)
            await c.run(first)
            second = make_request("second", num_prompt=30)
            assert await c.run(second) == expected(second)
            assert c.record(second).num_hit_tokens == 0

    run_virtual(scenario())


def test_a_failed_write_is_no_hit() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            request = make_request(num_prompt=20)
            c.decode[0].failing_writes.add(keys_of(request.prompt_token_ids)[1])
            await c.run(request)
            await c.quiet()
            assert c.index.match(keys_of(request.prompt_token_ids)) == 1

    run_virtual(scenario())


def test_a_single_token_answer_is_persisted_too() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            request = make_request(num_prompt=20, max_tokens=1)
            assert await c.run(request) == expected(request)
            await c.quiet()
            assert len(c.storage.blocks) == 2

    run_virtual(scenario())


def test_salted_requests_never_share_blocks() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            await c.run(replace(make_request("a"), cache_salt="one"))
            await c.quiet()
            other = replace(make_request("b"), cache_salt="two")
            await c.run(other)
            assert c.record(other).num_hit_tokens == 0
            same = replace(make_request("c"), cache_salt="one")
            await c.run(same)
            assert c.record(same).num_hit_tokens == 2 * BLOCK

    run_virtual(scenario())


def test_too_few_slots_make_requests_wait_not_fail() -> None:
    async def scenario() -> None:
        async with cluster(prefill_slots=4, decode_slots=4, config=SchedulerConfig(path_policy="split")) as c:
            requests = [make_request(f"r{i}", num_prompt=4 * BLOCK, seed=i) for i in range(20)]
            c.store_prompt(requests[0].prompt_token_ids)
            answers = await asyncio.gather(*(c.run(request) for request in requests))
            assert answers == [expected(request) for request in requests]
            assert max(c.record(request).total_s or 0 for request in requests) > 0.5

    run_virtual(scenario())


def test_device_memory_limits_how_many_requests_are_placed() -> None:
    async def scenario() -> None:
        config = SchedulerConfig(expected_output_tokens=8)
        async with cluster(device_tokens=4 * BLOCK, config=config) as c:
            requests = [make_request(f"r{i}", num_prompt=10, max_tokens=8, seed=i) for i in range(6)]
            tasks = []
            for request in requests:
                tasks.append(c.start(request))
                await asyncio.sleep(0.001)
            assert (await c.service.stats()).num_queued_requests == 5
            assert [await task for task in tasks] == [expected(request) for request in requests]
            waits = [c.record(request).phases_s["queued"] for request in requests]
            assert waits == sorted(waits), "first come, first served"

    run_virtual(scenario())


def test_refusals_come_before_anything_runs() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(max_queued_requests=2, beta_tokens=1)) as c:
            with pytest.raises(InvalidRequestError) as too_long:
                c.service.generate(make_request(num_prompt=64 * BLOCK + 1))
            assert too_long.value.code == "context_length_exceeded"
            with pytest.raises(InvalidRequestError) as too_much:
                c.service.generate(make_request(num_prompt=10, max_tokens=4096))
            assert too_much.value.code == "context_length_exceeded"
            with pytest.raises(InvalidRequestError):
                c.service.generate(make_request(prompt=()))
            tasks = []
            for i in range(3):
                tasks.append(c.start(make_request(f"r{i}")))
                await asyncio.sleep(0.001)
            with pytest.raises(InvalidRequestError):
                c.service.generate(make_request("r0"))
            with pytest.raises(OverloadedError) as overloaded:
                c.service.generate(make_request("r4"))
            assert overloaded.value.retry_after_s > 0
            await asyncio.gather(*tasks)

    run_virtual(scenario())


def test_an_id_is_in_use_until_engines_hold_nothing_of_it() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            request = make_request(num_prompt=5 * BLOCK)
            c.decode[0].delay_s["write"] = 5.0
            assert await c.run(request) == expected(request)
            with pytest.raises(InvalidRequestError, match="in use"):
                await c.run(request)
            await c.quiet()
            assert await c.run(request) == expected(request)

    run_virtual(scenario())


def test_a_request_that_waits_too_long_is_refused() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(queue_timeout_s=0.5, beta_tokens=1)) as c:
            c.prefill[0].delay_s["prefill"] = 2.0
            first = c.start(make_request("first"))
            await asyncio.sleep(0.001)
            with pytest.raises(OverloadedError):
                await c.run(make_request("second"))
            await first
            assert c.record(make_request("second")).outcome == "failed"

    run_virtual(scenario())


def test_records_are_kept_newest_first_and_not_for_ever() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(max_finished_records=3)) as c:
            ended: list[str] = []
            c.service.on_finished(lambda record: ended.append(record.request_id))
            for i in range(5):
                await c.run(make_request(f"r{i}"))
            stream = c.service.generate(make_request("running"))
            await take(stream, 1)
            assert [record.request_id for record in c.service.recent(10)] == ["running", "r4", "r3", "r2"]
            assert [record.request_id for record in c.service.recent(1)] == ["running"]
            assert c.service.recent(1)[0].outcome == "running"
            assert c.service.record(make_request("r0").request_id) is None
            await stream.aclose()
            assert ended == ["r0", "r1", "r2", "r3", "r4", "running"]

    run_virtual(scenario())


def test_eviction_keeps_the_store_below_its_capacity() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(capacity_bytes=4 * object_bytes(GEOMETRY))) as c:
            for i in range(6):
                await c.run(make_request(f"r{i}", prompt=tuple(range(100 * i, 100 * i + 20))))
                await c.quiet()
                await asyncio.sleep(1.0)
            assert c.index.num_blocks() <= 4
            assert len(c.storage.deleted) == 14, "each request leaves three blocks"
            assert len(c.storage.blocks) == 4

    run_virtual(scenario())


def test_close_lets_running_requests_end_and_refuses_new_ones() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            request = make_request(max_tokens=50)
            task = c.start(request)
            await asyncio.sleep(0.1)
            closing = asyncio.create_task(c.service.close(60.0))
            await asyncio.sleep(0.001)
            assert not c.service.ready()
            with pytest.raises(OverloadedError):
                c.service.generate(make_request("late"))
            assert await task == expected(request)
            await closing

    run_virtual(scenario())


def test_close_cancels_what_does_not_end_in_time() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.prefill[0].busy_releases = 1_000_000  # something may still move
            tasks = [c.start(make_request(f"r{i}", max_tokens=500)) for i in range(3)]
            await asyncio.sleep(0.1)
            await c.service.close(0.5)
            for task in tasks:
                with pytest.raises(Exception, match="shutting down"):
                    await task
            assert {record.outcome for record in c.service.recent(3)} == {"cancelled"}
            assert len(c.decode[0].slots.held) == 3, "a next scheduler releases what could still be written"
            for engine in (c.prefill[0], c.decode[0]):
                engine.slots.held.clear()
                engine.read_blocks.clear()

    run_virtual(scenario())


@pytest.mark.parametrize("error", [DualPathError("no way"), ZeroDivisionError("a bug of ours")], ids=repr)
def test_whatever_ends_a_request_is_told_and_a_bug_of_ours_with_its_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tracebacks: Tracebacks
) -> None:
    async def serve(*_: object) -> None:
        raise error

    async def scenario() -> None:
        async with cluster() as c:
            monkeypatch.setattr(Coordinator, "serve", serve)
            request = make_request()
            with pytest.raises(type(error), match=str(error)):
                await c.run(request)
            assert c.record(request).outcome == "failed"

    run_virtual(scenario())
    assert tracebacks.take() == (
        set() if isinstance(error, DualPathError) else {f"dualpath.scheduler.service: {error!r}"}
    )

"""What engines say of themselves, and what follows from it: each is asked by itself, stalled storage is spared."""

from __future__ import annotations

import asyncio

from tests.scheduler.cluster import cluster, expected
from tests.scheduler.fixtures import BLOCK, make_request
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.stats import EngineStats
from dualpath.scheduler.config import SchedulerConfig


def test_a_stalled_side_is_not_read_from_until_its_storage_answers() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(path_policy="prefill")) as c:
            requests = [make_request(f"r{i}", num_prompt=4 * BLOCK + 1) for i in range(4)]
            c.store_prompt(requests[0].prompt_token_ids)
            bytes_read = []
            for request, (on_prefill_s, on_decode_s) in zip(
                requests, [(0.0, 0.0), (9.0, 0.0), (9.0, 9.0), (4.9, 9.0)], strict=True
            ):
                c.prefill[0].storage_stalled_s, c.decode[0].storage_stalled_s = on_prefill_s, on_decode_s
                await asyncio.sleep(6.0)
                num_stalled = (on_prefill_s > 5.0) + (on_decode_s > 5.0)
                told = (f"the storage of {num_stalled} nodes does not answer",) if num_stalled else ()
                assert c.service.problems() == told
                assert await c.run(request) == expected(request)
                bytes_read.append(c.record(request).storage_read_bytes)
            assert bytes_read == [
                {"prefill": 4, "decode": 0},
                {"prefill": 0, "decode": 4},
                {"prefill": 0, "decode": 0},
                {"prefill": 4, "decode": 0},
            ]
            assert c.record(requests[2]).num_recomputed_blocks == 4
            assert c.record(requests[2]).num_hit_tokens == 0

    run_virtual(scenario())


def test_an_engine_that_does_not_answer_keeps_no_other_from_being_asked() -> None:
    async def scenario() -> None:
        config = SchedulerConfig(stats_timeout_s=1000.0, watch_interval_s=1.0)
        async with cluster(decode=2, config=config) as c:
            hanging = asyncio.Event()

            async def stats() -> EngineStats:
                await hanging.wait()
                return await answer()

            answer, c.decode[0].stats = c.decode[0].stats, stats  # type: ignore[method-assign]
            await asyncio.sleep(3.0)
            c.decode[1].die()
            await asyncio.sleep(3.0)
            assert c.desk.membership.is_lost(c.decode[1].info.engine_id)
            c.decode[0].stats = answer  # type: ignore[method-assign]
            hanging.set()
            c.decode[1].come_back()
            await asyncio.sleep(3.0)

    run_virtual(scenario())


def test_requests_are_taken_for_a_while_after_the_last_engine_went() -> None:
    async def scenario() -> None:
        config = SchedulerConfig(retry_budget_s=20.0)
        async with cluster(config=config) as c:
            await asyncio.sleep(60.0)
            c.decode[0].fall_silent()
            c.desk.mark_lost(c.decode[0].info.engine_id)
            assert not c.service.ready()
            assert c.service.accepts()
            task = c.start(request := make_request())
            await asyncio.sleep(19.0)
            assert c.service.accepts()
            c.decode[0].speak()
            assert await task == expected(request)
            c.decode[0].fall_silent()
            c.desk.mark_lost(c.decode[0].info.engine_id)
            await asyncio.sleep(21.0)
            assert not c.service.accepts()
            c.decode[0].speak()
            await asyncio.sleep(10.0)
            assert c.service.ready()
            assert c.service.accepts()

    run_virtual(scenario())


def test_the_service_is_ready_while_two_engines_are_connected() -> None:
    async def scenario() -> None:
        async with cluster(decode=2) as c:
            assert c.service.ready()
            c.prefill[0].delay_s["add_peer"] = 5.0
            for engine in c.decode:
                c.desk.mark_lost(engine.info.engine_id)
                c.desk.membership.mark_back(engine.info.engine_id)
            assert not c.service.ready()
            assert c.service.problems() == ("2 pairs of living engines are not connected",)
            await asyncio.sleep(8.0)
            assert c.service.ready()
            assert c.service.problems() == ()
            c.decode[1].fall_silent()
            await asyncio.sleep(6.0)
            assert c.service.problems() == ("1 of 3 engines do not answer",)
            c.decode[1].speak()
            await asyncio.sleep(8.0)

    run_virtual(scenario())

"""Engines that lose each other find each other again, and no memory is used again while bytes may still arrive in it.

The fakes check that by themselves: see their ``violations``.
"""

from __future__ import annotations

import asyncio

import pytest
from tests.scheduler.cluster import Cluster, cluster, expected, until_phase
from tests.scheduler.fakes import FakeDecode, FakeEngine, FakePrefill
from tests.scheduler.fixtures import BLOCK, make_request
from tests.scheduler.tracebacks import Tracebacks
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.errors import DualPathError, TransferError
from dualpath.core.ids import EngineId, PeerId, RequestId
from dualpath.scheduler.config import SchedulerConfig

D0 = EngineId("d0")


def calls(engine: FakePrefill | FakeDecode, operation: str) -> int:
    return sum(name == operation for name, _ in engine.log)


def is_connected(c: Cluster, prefill: str, decode: str) -> bool:
    return c.desk.peering.is_connected(EngineId(prefill), EngineId(decode))


async def until_connected(c: Cluster, *pairs: tuple[str, str]) -> None:
    async with asyncio.timeout(60.0):
        while not all(is_connected(c, *pair) for pair in pairs):  # noqa: ASYNC110  (pairs have no event)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("outage_s", [0.05, 0.25, 1.0, 3.0, 20.0])
def test_requests_survive_an_outage_of_the_path_between_two_living_engines(outage_s: float) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.prefill[0].cut.add(D0)
            asyncio.get_running_loop().call_later(outage_s, c.prefill[0].cut.clear)
            requests = [make_request(f"r{i}", num_prompt=2 * BLOCK, max_tokens=3, seed=i) for i in range(8)]
            answers = await asyncio.gather(*(c.run(request) for request in requests))
            assert answers == [expected(request) for request in requests]
            assert any(c.record(request).num_retries > 0 for request in requests)
            assert max(c.record(request).total_s or 0.0 for request in requests) < outage_s + 5.0

    run_virtual(scenario())


def test_a_path_that_stays_broken_ends_in_its_error() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(retry_budget_s=10.0)) as c:
            c.prefill[0].cut.add(D0)
            with pytest.raises(DualPathError, match="failed"):
                await c.run(make_request())
            assert 10.0 < (c.record(make_request()).total_s or 0.0) < 20.0
            c.prefill[0].cut.clear()
            assert await c.run(make_request("later")) == expected(make_request("later"))

    run_virtual(scenario())


def test_nobody_can_push_to_an_engine_that_does_not_know_it() -> None:
    """A new scheduler asks engines whom they know: who could write there unknown would be removed nowhere."""

    def num_told(engine: FakeEngine) -> int:
        return sum(operation == "add_peer" for operation, _ in engine.log)

    async def scenario() -> None:
        async with cluster(decode=1) as c:
            before = num_told(c.prefill[0]), num_told(c.decode[0])
            c.decode[0].delay_s["add_peer"] = 2.0
            c.desk.mark_lost(c.decode[0].info.engine_id)
            c.desk.membership.mark_back(c.decode[0].info.engine_id)
            await asyncio.sleep(1.0)
            assert (num_told(c.prefill[0]), num_told(c.decode[0])) == (before[0], before[1] + 1)
            await asyncio.sleep(4.0)
            assert num_told(c.prefill[0]) == before[0] + 1
            assert c.service.ready()

    run_virtual(scenario())


def test_other_pairs_are_used_while_one_is_broken() -> None:
    async def scenario() -> None:
        async with cluster(prefill=2, decode=2) as c:
            c.prefill[0].cut.add(D0)
            requests = [make_request(f"r{i}", seed=i) for i in range(12)]
            for request in requests:
                assert await c.run(request) == expected(request)
            pairs = {(c.record(r).prefill_engine, c.record(r).decode_engine) for r in requests}
            assert ("p0", "d0") not in pairs
            assert sum(c.record(r).num_retries for r in requests) <= 6

    run_virtual(scenario())


def test_requests_that_fail_together_have_the_path_mended_once() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            prefill, decode = c.prefill[0], c.decode[0]
            prefill.cut.add(D0)
            tasks = [c.start(make_request(f"r{i}", seed=i)) for i in range(8)]
            tasks.append(late := c.start(make_request("late")))
            prefill.delay_s["prefill"] = 0.5  # all of them move when the first one fails
            await asyncio.sleep(0.53)
            prefill.cut.clear()
            await asyncio.gather(*tasks)
            assert calls(prefill, "remove_peer") == calls(decode, "remove_peer") == 1
            assert calls(prefill, "peer_at_rest") == 1
            assert await late == expected(make_request("late"))

    run_virtual(scenario())


def test_a_failure_under_a_former_connection_does_not_break_the_present_one() -> None:
    """Mending ends all transfers between the two: some of their requests hear of it later than the mending takes."""

    async def scenario() -> None:
        async with cluster() as c:
            prefill, decode = c.prefill[0], c.decode[0]
            prefill.delay_s["prefill"], prefill.delay_s["explain"] = 10.0, 1.0
            slow = c.start(make_request("slow"))
            await until_phase(c, make_request("slow"), "prefilling")
            prefill.delay_s["prefill"], prefill.delay_s["explain"] = 0.01, 0.0
            prefill.cut.add(D0)
            quick = c.start(make_request("quick"))
            await until_phase(c, make_request("quick"), "prefilling")
            prefill.delay_s["explain"] = 1.0
            await asyncio.sleep(0.015)
            prefill.cut.clear()
            assert await quick == expected(make_request("quick"))
            assert await slow == expected(make_request("slow"))
            assert c.record(make_request("slow")).num_retries == 1
            assert calls(prefill, "remove_peer") == calls(decode, "remove_peer") == 1

    run_virtual(scenario())


def test_a_peer_that_an_engine_has_dropped_by_itself_is_introduced_again() -> None:
    """Its status names peers with pushes under way only; the request that fails tells of the others."""

    async def scenario() -> None:
        async with cluster() as c:
            c.prefill[0].peers.clear()
            assert await c.run(make_request()) == expected(make_request())
            assert c.record(make_request()).num_retries == 1

    run_virtual(scenario())


def test_a_failed_mending_is_tried_again(tracebacks: Tracebacks) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            for engine in (c.prefill[0], c.decode[0]):
                for operation in ("remove_peer", "add_peer"):
                    engine.faults[operation].extend([TransferError("busy"), KeyError("a bug")])
            c.prefill[0].faults["peer_at_rest"].append(TransferError("busy"))
            c.prefill[0].cut.add(D0)
            task = c.start(make_request())
            await asyncio.sleep(0.2)
            c.prefill[0].cut.clear()
            assert await task == expected(make_request())

    run_virtual(scenario())
    assert tracebacks.take() == {"dualpath.scheduler.engine_call: KeyError('a bug')"}


def test_a_pair_that_keeps_breaking_is_mended_ever_less_often() -> None:
    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(retry_budget_s=40.0)) as c:
            c.prefill[0].cut.add(D0)
            with pytest.raises(DualPathError):
                await asyncio.gather(*(c.run(make_request(f"r{i}")) for i in range(20)))
            assert calls(c.prefill[0], "remove_peer") < 60

    run_virtual(scenario())


def test_what_the_status_says_of_a_broken_peer_is_mended_without_a_request() -> None:
    async def scenario() -> None:
        async with cluster(prefill=2) as c:
            prefill, decode = c.prefill[0], c.decode[0]
            prefill.unsettled[decode.info.peer_id] = {RequestId("of nobody")}
            decode.late[prefill.info.peer_id].add(RequestId("of nobody"))
            await asyncio.sleep(6.0)
            assert not prefill.unsettled
            assert is_connected(c, "p0", "d0")
            assert calls(c.prefill[1], "remove_peer") == 0

    run_virtual(scenario())


def test_a_former_incarnation_that_is_called_broken_is_forgotten() -> None:
    """It is nobody's peer any more: a scheduler before this one knew it."""

    async def scenario() -> None:
        async with cluster() as c:
            c.prefill[0].unsettled[PeerId("d9.7")] = {RequestId("r")}
            await asyncio.sleep(6.0)
            assert not c.prefill[0].unsettled
            assert is_connected(c, "p0", "d0")
            assert calls(c.decode[0], "remove_peer") == 0

    run_virtual(scenario())


def test_a_decode_engine_that_comes_back_as_another_is_a_new_peer() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            prefill, decode = c.prefill[0], c.decode[0]
            task = c.start(make_request(max_tokens=30))
            await until_phase(c, make_request(), "prefilling")
            decode.die()
            await asyncio.sleep(1.0)
            assert prefill.peers == set()
            decode.come_back()
            assert await task == expected(make_request(max_tokens=30))
            assert prefill.peers == {"d0.1"}
            assert decode.peers == {"p0.0"}
            assert not prefill.unsettled

    run_virtual(scenario())


def test_a_prefill_engine_is_told_that_a_decode_engine_is_gone_for_good() -> None:
    """Else what it holds for the pushes that failed would be held for ever."""

    async def scenario() -> None:
        async with cluster(decode=2) as c:
            c.prefill[0].delay_s["prefill"] = 0.5
            request = make_request(max_tokens=2)
            task = c.start(request)
            await until_phase(c, request, "prefilling")
            lost = next(engine for engine in c.decode if engine.slots.held)
            c.prefill[0].unsettled[lost.info.peer_id] = {request.request_id}
            lost.fall_silent()
            c.desk.mark_lost(lost.info.engine_id)
            await asyncio.sleep(5.0)
            assert c.prefill[0].unsettled, "it may only be silent"
            assert await task == expected(request)
            lost.die()
            await asyncio.sleep(3.0)
            assert not c.prefill[0].unsettled
            assert not c.service._releaser.is_held(request.request_id)

    run_virtual(scenario())


def test_an_engine_that_was_silent_and_is_the_same_has_its_transfers_ended() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            prefill, decode = c.prefill[0], c.decode[0]
            prefill.delay_s["prefill"] = 0.5
            request = make_request(max_tokens=5)
            task = c.start(request)
            await until_phase(c, request, "prefilling")
            prefill.fall_silent()
            await asyncio.sleep(3.0)
            assert decode.slots.held, "it may write on"
            prefill.speak()
            assert await task == expected(request)
            assert calls(prefill, "remove_peer") >= 1
            assert calls(prefill, "peer_at_rest") >= 1
            await c.quiet()
            assert not decode.slots.held

    run_virtual(scenario())


def test_what_a_dead_prefill_engine_has_sent_arrives_before_its_slots_are_given_away() -> None:
    async def scenario() -> None:
        async with cluster(prefill=2) as c:
            decode = c.decode[0]
            for engine in c.prefill:
                engine.delay_s["prefill"] = 0.5
            decode.lossy_release = True
            request = make_request(max_tokens=5)
            task = c.start(request)
            await until_phase(c, request, "prefilling")
            decode.faults["remove_peer"].extend([TransferError("busy")] * 30)
            dying = next(engine for engine in c.prefill if engine.active)
            dying.die()
            await asyncio.sleep(0.3)
            assert RequestId("r") in decode.slots.held
            dying.come_back()
            assert await task == expected(request)
            await c.quiet()
            assert not decode.slots.held

    run_virtual(scenario())


@pytest.mark.parametrize("stuck", ["add_peer", "remove_peer"])
def test_a_stuck_prefill_engine_does_not_keep_a_decode_engine_from_the_others(stuck: str) -> None:
    async def scenario() -> None:
        async with cluster(prefill=3, decode=2) as c:
            c.prefill[0].delay_s[stuck] = 1e6
            c.decode[0].lossy_release = c.decode[1].lossy_release = True
            c.decode[0].die()
            await c.service.stats()
            await asyncio.sleep(1.0)
            c.decode[0].come_back()
            await asyncio.sleep(3.0)
            assert is_connected(c, "p1", "d0")
            assert is_connected(c, "p2", "d0")
            assert not is_connected(c, "p0", "d0")
            requests = [make_request(f"r{i}") for i in range(8)]
            await asyncio.gather(*(c.run(request) for request in requests))
            assert {c.record(request).decode_engine for request in requests} == {"d0", "d1"}
            c.prefill[0].delay_s[stuck] = 0.01
            await until_connected(c, ("p0", "d0"))

    run_virtual(scenario())


@pytest.mark.parametrize("moment", ["placed", "reading", "ready", "prefilling", "decoding"])
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_an_engine_may_restart_unnoticed_at_any_moment(role: str, moment: str) -> None:
    """Between two calls of an attempt, so that none of them fails: the next meets another incarnation."""

    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(path_policy="split", watch_interval_s=1e6)) as c:
            c.decode[0].lossy_release = True
            request = make_request(num_prompt=4 * BLOCK + 1, max_tokens=8)
            c.store_prompt(request.prompt_token_ids)
            task = c.start(request)
            await until_phase(c, request, moment)
            engine = c.prefill[0] if role == "prefill" else c.decode[0]
            engine.die()
            engine.come_back()
            assert await task == expected(request)
            again = make_request("again")
            assert await c.run(again) == expected(again)

    run_virtual(scenario())


def test_an_engine_that_was_started_again_is_introduced_before_a_request_meets_it() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            for engine in (c.prefill[0], c.decode[0]):
                engine.die()
                engine.come_back()
            await asyncio.sleep(6.0)
            assert await c.run(make_request()) == expected(make_request())
            assert c.record(make_request()).num_retries == 0

    run_virtual(scenario())


def test_an_engine_that_is_started_again_while_it_is_introduced_is_introduced_again() -> None:
    async def scenario() -> None:
        async with cluster(start=False) as c:
            c.prefill[0].delay_s["add_peer"] = 1.0
            starting = asyncio.create_task(c.scheduler.start())
            await asyncio.sleep(0.5)
            c.decode[0].die()
            c.decode[0].come_back()
            await starting
            assert c.prefill[0].peers == {"d0.1"}
            assert await c.run(make_request()) == expected(make_request())
            assert c.record(make_request()).num_retries == 0

    run_virtual(scenario())


@pytest.mark.parametrize("faults", [[], [TransferError("busy"), KeyError("a bug")]], ids=["at once", "not at once"])
def test_who_died_with_a_former_scheduler_is_removed_before_memory_is_handed_out(
    faults: list[Exception], tracebacks: Tracebacks
) -> None:
    """Nobody holds the slots any more that it may still write."""

    async def scenario() -> None:
        async with cluster(decode=2, start=False) as c:
            former, prefill = PeerId("p0.former"), c.prefill[0]
            prefill.peers.add(PeerId("d0.former"))
            for engine in c.decode:
                engine.peers.add(former)
                engine.late[former].add(RequestId("old"))
            c.decode[1].faults["remove_peer"].extend(faults)
            await c.scheduler.start()
            requests = [make_request(f"r{i}", seed=i) for i in range(4)]
            assert await asyncio.gather(*map(c.run, requests)) == [expected(request) for request in requests]
            await until_connected(c, ("p0", "d0"), ("p0", "d1"))
            assert prefill.peers == {engine.info.peer_id for engine in c.decode}
            assert all(engine.peers == {prefill.info.peer_id} for engine in c.decode)

    run_virtual(scenario())
    assert tracebacks.take() == ({"dualpath.scheduler.engine_call: KeyError('a bug')"} if faults else set())


def test_what_a_former_scheduler_left_half_mended_is_mended_before_the_service_starts() -> None:
    """It had the broken peer removed, and ended before both sides had come to rest. There is no other pair."""

    async def scenario() -> None:
        async with cluster(start=False) as c:
            c.prefill[0].unsettled[c.decode[0].info.peer_id] = set()
            c.decode[0].peers.add(c.prefill[0].info.peer_id)
            await c.scheduler.start()
            request = make_request()
            assert await c.run(request) == expected(request)

    run_virtual(scenario())


def test_who_is_started_again_before_it_was_ever_connected_is_removed_where_a_former_scheduler_introduced_it() -> None:
    async def scenario() -> None:
        async with cluster(decode=2, start=False) as c:
            prefill, silent = c.prefill[0], c.decode[1]
            prefill.peers.add(silent.info.peer_id)
            silent.fall_silent()
            await c.scheduler.start()
            assert is_connected(c, "p0", "d0")
            c.desk.mark_lost(silent.info.engine_id)
            silent.come_back()
            await until_connected(c, ("p0", "d0"), ("p0", "d1"))
            assert prefill.peers == {engine.info.peer_id for engine in c.decode}

    run_virtual(scenario())


def test_the_service_starts_with_the_pairs_that_can_be_connected() -> None:
    async def scenario() -> None:
        async with cluster(decode=2, start=False) as c:
            c.decode[1].faults["add_peer"].extend([TransferError("no route")] * 3)
            await c.scheduler.start()
            assert c.service.ready()
            assert is_connected(c, "p0", "d0")
            await until_connected(c, ("p0", "d1"))

    run_virtual(scenario())


def test_the_service_starts_without_an_engine_that_is_lost_and_waits_for_it() -> None:
    async def scenario() -> None:
        async with cluster(start=False) as c:
            c.decode[0].fall_silent()
            c.desk.mark_lost(D0)
            await c.scheduler.start()
            assert not c.service.ready()
            assert c.service.accepts()
            await asyncio.sleep(c.service.config.retry_budget_s + 1.0)
            assert not c.service.accepts()
            c.decode[0].speak()
            assert await c.run(make_request()) == expected(make_request())

    run_virtual(scenario())


def test_the_service_does_not_start_where_nothing_can_be_connected() -> None:
    async def scenario() -> None:
        async with cluster(decode=2, start=False) as c:
            for engine in c.decode:
                engine.faults["add_peer"].extend([TransferError("no route")] * 3)
            with pytest.raises(DualPathError, match="no route"):
                await c.scheduler.start()
            assert not c.service.ready()

    run_virtual(scenario())

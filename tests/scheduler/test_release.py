"""Letting go: only a death is a death, whatever a release raises, and nothing is given away on any other word."""

from __future__ import annotations

import asyncio
import logging

import pytest
from tests.scheduler.cluster import Cluster, cluster, expected, until_phase
from tests.scheduler.fixtures import make_request
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.errors import (
    DeadlineExceededError,
    EngineBugError,
    EngineLostError,
    EngineSilentError,
    InvalidRequestError,
    OverloadedError,
    PathBrokenError,
    TransferError,
)
from dualpath.core.ids import EngineId, PeerId, RequestId

WORDS = [
    KeyError("a bug"),
    EngineBugError("a bug over there"),
    EngineLostError("dropped"),
    EngineSilentError("silent"),
    PathBrokenError("broken"),
    TransferError("failed"),
    DeadlineExceededError("late"),
    InvalidRequestError("no"),
    OverloadedError("full"),
]


@pytest.mark.parametrize("word", WORDS, ids=lambda word: type(word).__name__)
def test_a_release_that_fails_on_the_prefill_side_keeps_the_decode_side(word: Exception) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.prefill[0].faults["release"].extend([word] * 12)
            assert await c.run(make_request()) == expected(make_request())
            await asyncio.sleep(5.0)
            assert c.decode[0].slots.held
            await asyncio.sleep(20.0)
            assert not c.decode[0].slots.held

    run_virtual(scenario())


@pytest.mark.parametrize("word", WORDS, ids=lambda word: type(word).__name__)
def test_a_release_that_fails_on_the_decode_side_is_tried_again(word: Exception) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.decode[0].faults["release"].extend([word] * 6)
            assert await c.run(make_request()) == expected(make_request())
            await asyncio.sleep(1.0)
            assert c.decode[0].slots.held
            assert not c.desk.engine_loads.is_idle, "what it holds is nobody else's"
            await c.quiet()

    run_virtual(scenario())


def test_a_bug_that_stays_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with cluster() as c:
            for engine in (c.prefill[0], c.decode[0]):
                engine.faults["release"].extend([KeyError("a bug")] * 40)
            with caplog.at_level(logging.WARNING):
                await asyncio.gather(*(c.run(make_request(f"r{i}")) for i in range(10)))
                await c.quiet()
            assert not c.prefill[0].faults["release"]
            lines = [record for record in caplog.records if "KeyError" in record.getMessage()]
            assert 1 <= len(lines) <= 10

    run_virtual(scenario())


def test_an_id_is_in_use_until_all_attempts_of_it_hold_nothing() -> None:
    """A late release of a former request's second attempt would free what the second attempt of this one holds."""

    async def scenario() -> None:
        async with cluster() as c:
            request = make_request()
            c.prefill[0].faults["batch"].append(EngineLostError("dropped"))
            task = c.start(request)
            await until_phase(c, request, "decoding")
            c.prefill[0].delay_s["release"] = 3.0
            c.decode[0].delay_s["release"] = 3.0
            assert await task == expected(request)
            await asyncio.sleep(1.0)
            assert RequestId("r") not in c.decode[0].slots.held
            assert RequestId("r~1") in c.decode[0].slots.held
            with pytest.raises(InvalidRequestError, match="in use"):
                c.service.generate(request)
            await c.quiet()
            assert await c.run(request) == expected(request)

    run_virtual(scenario())


# -- what a former scheduler's requests hold --------------------------------------------------------------------------


def leave_behind(c: Cluster, name: str) -> None:
    """As a request that was being prefilled when its scheduler ended."""
    request_id = RequestId(name)
    c.prefill[0].slots.held[request_id] = 2
    c.decode[0].slots.held[request_id] = 3
    c.desk._adopt([(engine.info.engine_id, request_id) for engine in (c.decode[0], c.prefill[0])])


def test_orphans_are_released_prefill_first_while_requests_are_served() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.prefill[0].busy_releases = 8
            leave_behind(c, "old~2")
            with pytest.raises(InvalidRequestError, match="in use"):
                c.service.generate(make_request("old"))
            assert await c.run(make_request()) == expected(make_request())
            assert RequestId("old~2") in c.decode[0].slots.held, "prefill has not said that nothing moves"
            await c.quiet()
            assert await c.run(make_request("old")) == expected(make_request("old"))

    run_virtual(scenario())


def test_orphans_whose_transfers_have_failed_are_released_when_the_path_is_mended() -> None:
    """Nobody has connected the two but the former scheduler."""

    async def scenario() -> None:
        async with cluster(start=False) as c:
            prefill, decode = c.prefill[0], c.decode[0]
            prefill.peers.add(decode.info.peer_id)
            prefill.unsettled[decode.info.peer_id] = {RequestId("old")}
            decode.late[prefill.info.peer_id].add(RequestId("old"))
            prefill.unsettled[PeerId("d0.former")] = {RequestId("older")}
            await c.scheduler.start()
            leave_behind(c, "old")
            await asyncio.sleep(10.0)
            assert not prefill.unsettled
            assert not decode.slots.held

    run_virtual(scenario())


def test_an_orphan_of_one_side_only_is_released() -> None:
    async def scenario() -> None:
        async with cluster() as c:
            c.decode[0].lossy_release = True
            c.prefill[0].slots.held[RequestId("p")] = 1
            c.decode[0].slots.held[RequestId("d")] = 1
            c.desk._adopt([(EngineId("p0"), RequestId("p")), (EngineId("d0"), RequestId("d"))])

    run_virtual(scenario())

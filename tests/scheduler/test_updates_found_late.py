"""Weights that a former scheduler has decided upon, of engines that could not be asked when its successor came."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.scheduler.cluster import Cluster, cluster
from tests.scheduler.fakes import FakeDecode, FakeEngine, FakePrefill
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.errors import EngineSilentError, WeightsError
from dualpath.core.ids import EngineId
from dualpath.core.weights import Weights

FORMER = Weights(4, "four", "/four")


async def _nothing(namespace: object) -> None: ...


async def come_back(it: Cluster, *names: str) -> None:
    """These are unreachable for a while, and have former weights."""
    for engine in (*it.prefill, *it.decode):
        if engine.info.engine_id in names:
            engine.has = FORMER
            it.desk.membership.mark_lost(EngineId(engine.info.engine_id), EngineSilentError("no answer"))
    async with asyncio.timeout(100.0):
        while it.desk.membership.num_lost or it.desk.peering.num_apart:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def all_names(it: Cluster) -> list[str]:
    return [engine.info.engine_id for engine in (*it.prefill, *it.decode)]


def change_in_place(it: Cluster) -> list[FakePrefill | FakeDecode]:
    it.desk.updates._open_namespace = _nothing
    engines = [*it.prefill, *it.decode]
    for engine in engines:
        engine.info = replace(engine.info, changes_in_place=True)
    return engines


async def nobody_is_heard(it: Cluster, but: Sequence[FakeEngine] = ()) -> None:
    """As when a scheduler begins to which no engine answers."""
    silent = [engine for engine in (*it.prefill, *it.decode) if engine not in but]
    for engine in silent:
        engine.fall_silent()
    await it.desk.updates.find()
    for engine in silent:
        engine.speak()


def test_they_are_gone_on_with_when_their_engines_come_back() -> None:
    async def scenario() -> None:
        for num_back in (1, 2):
            async with cluster() as it:
                it.desk.updates._open_namespace = _nothing
                await come_back(it, *all_names(it)[-num_back:])
                assert it.desk.updates.epoch.weights == FORMER
                assert {engine.has for engine in (*it.prefill, *it.decode)} == {FORMER}, "all have been brought to them"
                assert (await it.desk.updates.update("/five")).weights.number == 5

    run_virtual(scenario())


def test_they_are_not_where_others_have_been_decided_upon_since() -> None:
    async def scenario() -> None:
        async with cluster() as it:
            it.desk.updates._open_namespace = _nothing
            mine = (await it.desk.updates.update("/mine")).weights
            await come_back(it, all_names(it)[-1])
            assert it.desk.updates.epoch.weights == mine
            assert {engine.has for engine in (*it.prefill, *it.decode)} == {mine}

    run_virtual(scenario())


@pytest.mark.parametrize("was_heard", [True, False])
def test_of_engines_that_change_in_place_only_where_nobody_was_heard(was_heard: bool) -> None:
    """One that was heard has gone back, or has the weights: else it had not been there when others changed."""

    async def scenario() -> None:
        async with cluster(prefill=2) as it:
            engines = change_in_place(it)
            await nobody_is_heard(it, but=engines[:was_heard])
            await come_back(it, "d0")
            current = Weights() if was_heard else FORMER
            assert it.desk.updates.epoch.weights == current
            assert {engine.has for engine in engines} == {current}

    run_virtual(scenario())


def test_what_was_given_to_an_engine_and_taken_back_is_no_news() -> None:
    async def scenario() -> None:
        async with cluster(decode=2) as it:
            engines = change_in_place(it)
            await nobody_is_heard(it)
            it.decode[0].faults["use_weights"].append(WeightsError("no"))
            it.decode[1].delay_s["use_weights"] = 3.0
            updating = asyncio.create_task(it.desk.updates.update("/new"))
            await asyncio.sleep(2.9)
            assert it.prefill[0].has.directory == "/new"
            given = it.prefill[0].has
            with pytest.raises(WeightsError):
                await updating
            await come_back(it)
            it.decode[1].has = given  # as if it had not heard that it was to go back
            it.desk.membership.mark_lost(it.decode[1].info.engine_id, EngineSilentError("no answer"))
            await come_back(it)
            assert it.desk.updates.epoch.weights == Weights()
            assert {engine.has for engine in engines} == {Weights()}

    run_virtual(scenario())

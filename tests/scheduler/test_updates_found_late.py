"""Weights that a former scheduler has decided upon, of engines that could not be asked when its successor came."""

from __future__ import annotations

import asyncio

from tests.scheduler.cluster import Cluster, cluster
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.errors import EngineSilentError
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

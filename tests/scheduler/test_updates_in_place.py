"""Engines without room for two weights: all of them change before it is decided, or they go back to what they had."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.scheduler.cluster import Cluster, cluster, expected
from tests.scheduler.fakes import FakeDecode, FakePrefill
from tests.scheduler.fixtures import make_request
from tests.scheduler.virtual_time import run_virtual

from dualpath.core.errors import ConfigError, OtherWeightsError, WeightsError
from dualpath.core.ids import EngineId
from dualpath.core.request import TokenEvent
from dualpath.core.weights import Weights
from dualpath.protocol.api import PrefillOrder

Engines = list[FakePrefill | FakeDecode]


def _engines(it: Cluster) -> Engines:
    """All change in place. A new namespace is as empty as the first."""
    it.desk.updates._open_namespace = _nothing  # type: ignore[assignment]
    engines: Engines = [*it.prefill, *it.decode]
    for engine in engines:
        engine.info = replace(engine.info, changes_in_place=True)
    return engines


async def _nothing(namespace: object) -> None: ...


def _refusing(engine: FakePrefill | FakeDecode, *directories: str) -> None:
    take = engine.use_weights

    async def use_weights(weights: Weights) -> None:
        if weights.directory in directories:
            raise ConfigError("it has them not")
        await take(weights)

    engine.use_weights = use_weights  # type: ignore[method-assign]


def test_all_change_before_requests_are_placed_for_the_new_ones() -> None:
    async def scenario() -> None:
        async with cluster() as it:
            engines = _engines(it)
            epochs = []
            for engine in engines:
                take = engine.use_weights

                async def use_weights(weights: Weights, take: object = take) -> None:
                    epochs.append(it.desk.updates.epoch.weights.number)
                    await take(weights)  # type: ignore[operator]

                engine.use_weights = use_weights  # type: ignore[method-assign]
            await it.desk.updates.update("/one")
            assert epochs == [0] * len(engines), "asked once each, while the old ones were in use"
            assert it.desk.updates.epoch.weights.directory == "/one"

    run_virtual(scenario())


def test_if_one_cannot_all_go_back() -> None:
    async def scenario() -> None:
        async with cluster() as it:
            engines = _engines(it)
            await it.desk.updates.update("/one")
            _refusing(engines[-1], "/two")
            with pytest.raises(WeightsError, match="the weights 2 of /two are not used: it has them not"):
                await it.desk.updates.update("/two")
            assert it.desk.updates.epoch.weights.directory == "/one"
            assert {engine.has.directory for engine in engines} == {"/one"}
            assert it.desk.membership.num_lost == 0
            await it.desk.updates.update("/three")
            assert {engine.has.directory for engine in engines} == {"/three"}

    run_virtual(scenario())


@pytest.mark.parametrize("former", ["/one", ""], ids=["an update's", "the start's"])
def test_one_that_cannot_go_back_is_lost_until_it_has(former: str) -> None:
    async def scenario() -> None:
        async with cluster() as it:
            engines = _engines(it)
            if former:
                await it.desk.updates.update(former)
            lost = engines[0]
            take, num_failures = lost.use_weights, 0

            async def use_weights(weights: Weights) -> None:
                nonlocal num_failures
                if weights.directory == former and num_failures < 2:
                    num_failures += 1
                    raise ConfigError("not yet")
                await take(weights)

            lost.use_weights = use_weights  # type: ignore[method-assign]
            _refusing(engines[-1], "/two")
            with pytest.raises(WeightsError):
                await it.desk.updates.update("/two")
            assert it.desk.membership.is_lost(EngineId(lost.info.engine_id))
            assert lost.has.directory == "/two"
            async with asyncio.timeout(100.0):
                while it.desk.membership.num_lost or it.desk.peering.num_apart:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert lost.has.directory == former
            assert num_failures == 2

    run_virtual(scenario())


def test_one_that_gets_others_late_is_lost_until_it_has_those_in_use() -> None:
    """A former scheduler has asked it, and died."""

    async def scenario() -> None:
        async with cluster() as it:
            _engines(it)
            engine = it.prefill[0]
            ask = engine.prefill

            async def prefill(order: PrefillOrder) -> AsyncIterator[TokenEvent | None]:
                if engine.has.directory:
                    raise OtherWeightsError("it has other weights")
                async for event in ask(order):
                    yield event

            engine.prefill = prefill  # type: ignore[method-assign]
            engine.has = Weights(7, "7", "/late")
            request = make_request(max_tokens=3)
            async with asyncio.timeout(60.0):
                assert await it.run(request) == expected(request)

    run_virtual(scenario())

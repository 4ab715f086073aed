"""A gateway elsewhere that the desk had given up, or that has lost its desk, goes on."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest
from tests.scheduler.cluster import cluster
from tests.scheduler.fixtures import NAMESPACE
from tests.scheduler.virtual_time import LoopRuntime, run_virtual

from dualpath.core.errors import EngineSilentError, OverloadedError
from dualpath.core.ids import NodeId, RequestId
from dualpath.protocol.node_link import NodeLink
from dualpath.protocol.wire import NodeReport
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.demand import Demand
from dualpath.scheduler.desk.remote import RemoteDesk

DEMAND = Demand(RequestId("gateway.1/r"), -1, 8, 16)
REPORT = NodeReport(NAMESPACE, "fake", 4096, (), b"", "host", 1)


def test_a_request_is_placed_again_only_when_engines_hold_nothing_of_it() -> None:
    """Its answer was lost with the gateway's seat: the second asking comes while the first is being given back."""

    async def scenario() -> None:
        async with cluster() as it:
            nodes = {engine.info.node_id: SimpleNamespace(end_caller=_slowly) for engine in (*it.prefill, *it.decode)}
            it.desk._nodes = cast(dict, nodes)
            seat = it.desk.seat()
            await seat.place(DEMAND)
            it.desk.vacate("gateway.1", seat)
            seat = it.desk.seat()
            with pytest.raises(EngineSilentError, match="given back"):
                await seat.place(DEMAND)
            other = await seat.place(Demand(RequestId("gateway.1/other"), -1, 8, 16))
            await asyncio.sleep(10.0)
            again = await seat.place(DEMAND)
            for request_id, placement in ((DEMAND.request_id, again), (RequestId("gateway.1/other"), other)):
                seat.released(request_id, placement.prefill)
                seat.released(request_id, placement.decode)
            it.desk.seats.remove(seat)

    run_virtual(scenario())


async def _slowly(caller: str) -> tuple[()]:
    await asyncio.sleep(1.0)
    return ()


def _remote() -> RemoteDesk:
    link = SimpleNamespace(calls=None, is_up=True, num_sessions=1)
    desk = RemoteDesk(cast(NodeLink, link), SchedulerConfig(queue_timeout_s=5.0), LoopRuntime())
    desk._session = 1
    desk._up.set()
    return desk


def test_a_gateway_asks_again_until_its_time_is_up() -> None:
    async def scenario() -> None:
        desk, num_asked, loop = _remote(), 0, asyncio.get_running_loop()

        async def place(demand: Demand) -> None:
            nonlocal num_asked
            num_asked += 1
            raise EngineSilentError("it is being given back")

        desk._seat = cast(object, SimpleNamespace(place=place))  # type: ignore[assignment]
        with pytest.raises(OverloadedError, match="5 s"):
            await desk.place(DEMAND)
        assert loop.time() == pytest.approx(5.0, abs=0.1)
        assert num_asked >= 50

    run_virtual(scenario())


def test_a_gateway_takes_the_next_desk_though_the_former_never_told_it_anything() -> None:
    """Else it would wait for ever: what tells that a node's engines are others is the desk's news."""

    async def scenario() -> None:
        async with cluster() as it:
            desk = _remote()
            assert desk.knows(REPORT)
            engines = tuple(engine.info for engine in it.prefill)
            node = NodeReport(NAMESPACE, "fake", 4096, engines, b"", "host", 1)
            assert not desk.knows(node), f"of {NodeId('node-p0')} nobody has told it"

    run_virtual(scenario())

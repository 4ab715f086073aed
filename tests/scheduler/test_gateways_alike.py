"""Gateways beside others: a pause and the end of requests, asked at one, hold at all; so does the queue's limit."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import pytest
from tests.scheduler.cluster import Cluster, cluster, expected
from tests.scheduler.fixtures import NAMESPACE, make_request
from tests.scheduler.virtual_time import LoopRuntime, run_virtual

from dualpath.core.errors import DualPathError, OverloadedError, RequestAbortedError
from dualpath.core.ids import NodeId, RequestId
from dualpath.core.pause import PauseMode
from dualpath.core.request import OTHER_GATEWAYS, RecordQuery, Request
from dualpath.protocol import wire
from dualpath.protocol.node_link import LinkConfig, NodeLink
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.desk.broadcast import ANSWER_S
from dualpath.scheduler.desk.remote import RemoteDesk
from dualpath.scheduler.desk.server import DeskServer
from dualpath.scheduler.desk.shared_control import SharedControl
from dualpath.scheduler.service import Service

T = TypeVar("T")

LEASE_S = 10.0
LONG = 200


class Line:
    """To the desk; it can be cut."""

    is_cut = False

    def __init__(self, server: DeskServer) -> None:
        self.server = server

    async def open(self, session: str) -> bytes:
        return await self._pass(self.server).open(session)

    async def send(self, session: str, batch: bytes) -> None:
        await self._pass(self.server).send(session, batch)

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        return self._pass(await self._pass(self.server).poll(session, max_wait_s))

    def _pass(self, what: T) -> T:
        if self.is_cut:
            raise DualPathError("the line is cut")
        return what

    def end_process(self) -> None:
        raise AssertionError("a gateway ends nobody")


class Gateway:
    """A service over the cluster's engines, with a desk over a line."""

    def __init__(self, name: str, it: Cluster, server: DeskServer) -> None:
        self._name, self._it, self._runtime = name, it, LoopRuntime()
        self.line = Line(server)
        config = LinkConfig(kill_silent_s=math.inf, lease_s=math.inf)
        self._link = NodeLink(
            NodeId("scheduler"),
            self.line,
            config,
            lambda *_: None,
            lambda _: None,
            self._runtime,
            caller=name,
            knows=lambda _: True,
        )

    async def start(self) -> None:
        await self._link.start()
        self.desk = RemoteDesk(self._link, self._it.desk.config, self._runtime)
        await self.desk.start()
        self.service = Service(
            self.desk,
            prefill_engines=self._it.prefill,
            decode_engines=self._it.decode,
            namespace=NAMESPACE,
            model_name="fake",
            max_context_tokens=4096,
            config=self._it.desk.config,
            runtime=self._runtime,
            scope=f"{self._name}/",
            control=SharedControl,
        )
        self.service.open()
        self.control = self.service.control

    async def close(self) -> None:
        await self.service.close(60.0)
        await self.desk.close()
        await self._link.close()

    async def run(self, request: Request) -> list[int]:
        return [event.token_id async for event in self.service.generate(request)]

    def start_request(self, name: str, max_tokens: int = LONG) -> tuple[Request, asyncio.Task[list[int]]]:
        request = make_request(name, max_tokens=max_tokens)
        return request, asyncio.create_task(self.run(request))

    async def until_decoding(self) -> None:
        async with asyncio.timeout(60.0):
            while not any(attempt.is_decoding for attempt in self.service._coordinator.attempts):  # noqa: ASYNC110
                await asyncio.sleep(0.001)


class Front:
    """All gateways of a cluster."""

    def __init__(self, it: Cluster, stack: AsyncExitStack) -> None:
        self.it, self._stack = it, stack
        self.serve()

    def serve(self) -> None:
        """Gateways that come from now on are led to the present desk."""
        report = wire.NodeReport(NAMESPACE, "fake", 4096, (), wire.encode(self.it.desk.config), "host", 1)
        self.server = DeskServer(self.it.desk, report, LoopRuntime(), LEASE_S)

    async def add(self, name: str) -> Gateway:
        gateway = Gateway(name, self.it, self.server)
        await gateway.start()
        self._stack.push_async_callback(gateway.close)
        return gateway


@asynccontextmanager
async def front(config: SchedulerConfig | None = None) -> AsyncIterator[Front]:
    async with cluster(config=config) as it, AsyncExitStack() as stack:
        yield Front(it, stack)


@pytest.mark.parametrize("mode", PauseMode)
def test_a_pause_at_one_holds_at_all_and_any_of_them_ends_it(mode: PauseMode) -> None:
    async def scenario() -> None:
        async with front() as it:
            first, second = await it.add("a.1"), await it.add("b.1")
            running = [gateway.start_request(f"r{i}") for i, gateway in enumerate((first, second))]
            for gateway in (first, second):
                await gateway.until_decoding()
            await second.control.pause(mode)
            assert first.control.is_paused
            assert second.control.is_paused
            if not mode.keeps:
                assert not first.service._coordinator.attempts
                assert not second.service._coordinator.attempts
            late = [gateway.start_request(f"late{i}", 3) for i, gateway in enumerate((first, second))]
            await asyncio.sleep(1000.0)  # longer than every deadline
            assert not any(task.done() for _, task in late)
            # These engines stand still for nobody, so what is kept comes to its end.
            assert [task.done() for _, task in running] == [mode is not PauseMode.RETRACT] * 2
            await first.control.resume()
            for request, task in late:
                assert await task == expected(request)
            assert not second.control.is_paused
            for request, task in running:
                if mode is PauseMode.ABORT:
                    with pytest.raises(RequestAbortedError):
                        await task
                else:
                    assert await task == expected(request)

    run_virtual(scenario())


def test_requests_are_ended_at_whichever_gateway_they_run() -> None:
    async def scenario() -> None:
        async with front() as it:
            first, second = await it.add("a.1"), await it.add("b.1")
            second.control.find = lambda name: [RequestId("r1")] if name == "mine" else [RequestId(name)]
            (_, kept), (_, named) = first.start_request("r0"), second.start_request("r1")
            for gateway in (first, second):
                await gateway.until_decoding()
            assert await first.control.abort(["nobody"]) == 0
            assert await first.control.abort(["mine", "nobody"]) == 1
            with pytest.raises(RequestAbortedError):
                await named
            assert not kept.done()
            _, other = second.start_request("r2")
            await second.until_decoding()
            assert await second.control.abort(None) == 2
            for task in (kept, other):
                with pytest.raises(RequestAbortedError):
                    await task

    run_virtual(scenario())


def test_a_gateway_that_comes_while_all_are_paused_waits_with_them() -> None:
    async def scenario() -> None:
        async with front() as it:
            first = await it.add("a.1")
            await first.control.pause(PauseMode.ABORT)
            second = await it.add("b.1")
            assert second.control.is_paused
            request, answer = second.start_request("r", 3)
            await asyncio.sleep(100.0)
            assert not answer.done()
            await first.control.resume()
            assert await answer == expected(request)

    run_virtual(scenario())


def test_one_that_is_cut_off_is_waited_for_until_it_is_given_up_and_follows_when_it_is_back() -> None:
    async def scenario() -> None:
        async with front() as it:
            first, second = await it.add("a.1"), await it.add("b.1")
            second.line.is_cut = True
            loop = asyncio.get_running_loop()
            started_s = loop.time()
            await first.control.pause(PauseMode.WAIT)
            assert LEASE_S / 2 < loop.time() - started_s < 2 * LEASE_S
            assert not second.control.is_paused, "nobody could tell it"
            second.line.is_cut = False
            await asyncio.sleep(5.0)
            assert second.control.is_paused
            await second.control.resume()
            await asyncio.sleep(1.0)
            assert not first.control.is_paused

    run_virtual(scenario())


def test_a_pause_that_waits_ends_when_it_is_over_or_another_takes_its_place() -> None:
    async def scenario() -> None:
        async with front() as it:
            first, second = await it.add("a.1"), await it.add("b.1")
            request, answer = second.start_request("r")
            await second.until_decoding()
            waiting = asyncio.create_task(first.control.pause(PauseMode.WAIT))
            await asyncio.sleep(0.01)
            assert second.control.is_paused
            assert not waiting.done()
            keeping = asyncio.create_task(second.control.pause(PauseMode.RETRACT))
            await waiting
            await keeping
            await asyncio.sleep(100.0)
            assert not answer.done()
            await second.control.resume()
            assert await answer == expected(request)

    run_virtual(scenario())


async def _seen(gateway: Gateway, limit: int = 100, name: str | None = None, viewer: str | None = None) -> list[str]:
    """What any gateway says that is asked."""
    request_id = None if name is None else RequestId(name)
    answer = await gateway.control.records(RecordQuery(limit, request_id, viewer))
    assert answer.missing == ()
    return [record.request_id for record in answer.records]


async def _running(gateway: Gateway) -> int:
    found = await gateway.control.records(RecordQuery(1))
    assert found.in_phase is not None
    return (await gateway.service.stats()).with_requests(found.in_phase).num_running_requests


def test_each_shows_the_requests_of_all() -> None:
    async def scenario() -> None:
        async with front() as it:
            first, second, third = [await it.add(name) for name in ("a.1", "b.1", "c.1")]
            for name, gateway in (("r0", first), ("r1", second), ("r2", first), ("r3", third)):
                await gateway.run(make_request(name, max_tokens=3))
                await asyncio.sleep(1.0)
            _, running = second.start_request("r4")
            await second.until_decoding()
            for gateway in (first, second, third):
                assert await _seen(gateway) == ["r4", "r3", "r2", "r1", "r0"]
                assert await _seen(gateway, limit=2) == ["r4", "r3"]
                assert await _seen(gateway, name="r1") == ["r1"]
                assert await _seen(gateway, name="nobody's") == []
            (record,) = (await first.control.records(RecordQuery(1))).records
            assert (record.outcome, record.total_s) == ("running", None)
            _, of_another = third.start_request("r5")
            await third.until_decoding()
            for gateway in (first, second, third):
                assert await _running(gateway) == 2, "of all, beyond the limit too"
            assert (await first.control.records(RecordQuery(1, viewer="x"))).in_phase is None
            await third.control.abort([RequestId("r5")])
            with pytest.raises(RequestAbortedError):
                await of_another
            assert await _running(first) == 1
            await second.control.abort(None)
            with pytest.raises(RequestAbortedError):
                await running
            (record,) = (await first.control.records(RecordQuery(1, RequestId("r4")))).records
            assert record == second.service.recent(1)[0]

    run_virtual(scenario())


def test_a_key_sees_its_own_requests_at_all() -> None:
    async def scenario() -> None:
        async with front() as it:
            first, second = await it.add("a.1"), await it.add("b.1")
            for name, gateway in (("x-0", first), ("y-0", second), ("x-1", second)):
                await gateway.run(make_request(name, max_tokens=3))
                await asyncio.sleep(1.0)
            assert await _seen(first, viewer="x") == [], "nobody has said whose they are"
            for gateway in (first, second):
                gateway.control.may_see = lambda viewer, request_id: request_id.startswith(viewer)
            for gateway in (first, second):
                assert await _seen(gateway, viewer="x") == ["x-1", "x-0"]
                assert await _seen(gateway, viewer="x", limit=1) == ["x-1"]
                assert await _seen(gateway, viewer="x", name="y-0") == []

    run_virtual(scenario())


def test_who_gives_no_answer_is_named_in_time() -> None:
    async def scenario() -> None:
        async with front() as it:
            first, second, _ = [await it.add(name) for name in ("a.1", "b.1", "c.1")]
            for name, gateway in (("r0", first), ("r1", second)):
                await gateway.run(make_request(name, max_tokens=3))
            await asyncio.sleep(1.0)  # the desk has all notes of them
            second.line.is_cut = True
            loop = asyncio.get_running_loop()

            async def ask(gateway: Gateway) -> tuple[list[str], tuple[str, ...], float]:
                started_s = loop.time()
                answer = await gateway.control.records(RecordQuery(9))
                return [record.request_id for record in answer.records], answer.missing, loop.time() - started_s

            records, missing, took_s = await ask(first)
            assert (records, missing) == (["r0"], ("b",))
            assert took_s < ANSWER_S + 0.1
            records, missing, took_s = await ask(second)
            assert (records, missing) == (["r1"], (OTHER_GATEWAYS,)), "nobody could be asked"
            assert took_s < it.it.desk.config.stats_timeout_s + 0.1
            await asyncio.sleep(2 * LEASE_S)
            assert await ask(first) == (["r0"], ("b",), pytest.approx(0.0, abs=0.5)), "it is known to be gone"
            second.line.is_cut = False
            await asyncio.sleep(5.0)
            assert await ask(first) == (["r1", "r0"], (), pytest.approx(0.0, abs=0.5))

    run_virtual(scenario())


def test_the_queue_is_the_clusters_and_full_for_all() -> None:
    async def scenario() -> None:
        async with front(SchedulerConfig(max_queued_requests=2, retry_after_s=7.0)) as it:
            first, second = await it.add("a.1"), await it.add("b.1")
            await first.control.pause(PauseMode.KEEP)
            waiting = [gateway.start_request(f"r{i}", 3) for i, gateway in enumerate((first, second))]
            await asyncio.sleep(0.05)  # the desk has them, and has told nobody yet that it is full
            for gateway in (first, second):
                with pytest.raises(OverloadedError) as caught:
                    await gateway.run(make_request("more", max_tokens=3))
                assert caught.value.retry_after_s == 7.0
            await asyncio.sleep(1.0)
            for gateway in (first, second):
                with pytest.raises(OverloadedError) as caught:
                    gateway.service.generate(make_request("more", max_tokens=3))
                assert caught.value.retry_after_s == 7.0
            await first.control.resume()
            for request, task in waiting:
                assert await task == expected(request)

    run_virtual(scenario())

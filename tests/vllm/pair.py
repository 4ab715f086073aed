"""A service over a pair of fake vLLM servers: nodes behind links, tokens over HTTP, all in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from tests.protocol.line import Line
from tests.scheduler.fakes import FakeStorage
from tests.scheduler.fixtures import GEOMETRY, NAMESPACE
from tests.vllm.fake_nodes import DecodeNode, PrefillNode, Worker
from tests.vllm.fake_server import MAX_MODEL_LEN, FakeVllm, listening

from dualpath.core.errors import EngineLostError
from dualpath.core.exchange import Exchanges
from dualpath.core.ids import EngineId, NodeId
from dualpath.core.keys import Namespace
from dualpath.core.request import Request, RequestRecord, TokenEvent
from dualpath.protocol.api import EngineInfo
from dualpath.protocol.host import EngineServer, Served
from dualpath.protocol.node_link import LinkConfig, NodeLink
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.scheduler import Scheduler
from dualpath.scheduler.service import Service
from dualpath.store.header import object_bytes
from dualpath.store.index import BlockIndex
from dualpath.vllm.api_server import ApiServer
from dualpath.vllm.engine_client import VllmDecodeEngine, VllmPrefillEngine
from dualpath.vllm.line import DecodeNodeLine, PrefillNodeLine

FAST = SchedulerConfig(path_policy="split", pause_s=0.001, probe_interval_s=0.01, watch_interval_s=0.05)


class NodeLine(Line):
    """To a node that can be started again."""

    def __init__(self, server: EngineServer, infos: tuple[EngineInfo, ...]) -> None:
        super().__init__(server, infos)
        self._ended = asyncio.Event()

    def come_back(self, **changes: Any) -> None:
        """The session ends; the next one tells of a node with these changes to its report."""
        report = self._opened.report
        assert report is not None
        self._opened = msgspec.structs.replace(self._opened, report=msgspec.structs.replace(report, **changes))
        self._ended.set()

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        polling, ending = asyncio.ensure_future(super().poll(session, max_wait_s)), asyncio.ensure_future(self._end())
        try:
            await asyncio.wait([polling, ending], return_when=asyncio.FIRST_COMPLETED)
            return ending.result() if ending.done() else polling.result()
        finally:
            for task in (polling, ending):
                task.cancel()

    async def _end(self) -> bytes:
        await self._ended.wait()
        self._ended.clear()
        raise EngineLostError("its process has ended")


@dataclass
class Pair:
    scheduler: Scheduler
    index: BlockIndex
    storage: FakeStorage
    prefill: PrefillNode
    decode: DecodeNode
    prefill_server: FakeVllm
    decode_server: FakeVllm
    lines: tuple[NodeLine, NodeLine]
    servers: tuple[ApiServer, ApiServer]
    exchanges: Exchanges

    @property
    def service(self) -> Service:
        return self.scheduler.service

    async def run(self, request: Request) -> list[TokenEvent]:
        return [event async for event in self.service.generate(request)]

    def record(self, request: Request) -> RequestRecord:
        record = self.service.record(request.request_id)
        assert record is not None
        return record

    async def quiet(self) -> None:
        assert await self.service._tasks.wait(10.0)

    def check_nothing_held(self) -> None:
        assert self.scheduler.desk.engine_loads.is_idle
        assert not self.index._pins
        assert not len(self.exchanges)
        for node in (self.prefill, self.decode):
            assert not node.violations
            assert node.holds_nothing, node.info.engine_id


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


@asynccontextmanager
async def pair(config: SchedulerConfig = FAST, *, have_doors: bool = True) -> AsyncIterator[Pair]:
    storage, index, exchanges = FakeStorage(), BlockIndex(object_bytes(GEOMETRY)), Exchanges()
    decode = DecodeNode("d0", storage)
    prefill = PrefillNode("p0", storage, {decode.info.engine_id: decode})
    prefill.worker, decode.worker = Worker(), Worker()
    prefill.info, decode.info = (replace(node.info, changes_in_place=True) for node in (prefill, decode))

    async def open_namespace(namespace: Namespace) -> None:
        index.adopt(namespace.digest, ())

    for node in (prefill, decode):
        node.delay_s.update(dict.fromkeys(("read", "reserve", "prefill", "write", "release", "add_peer"), 0.0))
    async with AsyncExitStack() as stack:
        prefill_server = await stack.enter_async_context(listening(FakeVllm(prefill.worker, True, has_door=have_doors)))
        decode_server = await stack.enter_async_context(listening(FakeVllm(decode.worker, False, has_door=have_doors)))
        servers = ApiServer(prefill_server.url), ApiServer(decode_server.url)
        links, channels = [], []
        for node, line in ((prefill, PrefillNodeLine), (decode, DecodeNodeLine)):
            host = EngineServer({node.info.engine_id: Served(node, line)})
            channels.append(channel := NodeLine(host, (node.info,)))
            link = NodeLink(NodeId(node.info.node_id), channel, LinkConfig(), lambda *_: None, lambda _: None)
            await link.start()
            stack.push_async_callback(link.close)
            links.append(link)
        engines = (
            VllmPrefillEngine(links[0], EngineId("p0"), servers[0]),
            VllmDecodeEngine(links[1], EngineId("d0"), servers[1], exchanges),
        )
        for server in servers:
            stack.push_async_callback(server.close)
        scheduler = Scheduler(
            prefill_engines=[engines[0]],
            decode_engines=[engines[1]],
            index=index,
            store=storage,
            namespace=NAMESPACE,
            model_name="m",
            max_context_tokens=MAX_MODEL_LEN,
            config=config,
            open_namespace=open_namespace,
        )
        await scheduler.start()
        lines = channels[0], channels[1]
        it = Pair(scheduler, index, storage, prefill, decode, prefill_server, decode_server, lines, servers, exchanges)
        try:
            yield it
        finally:
            await scheduler.close(5.0)
        it.check_nothing_held()
        await asyncio.sleep(0)

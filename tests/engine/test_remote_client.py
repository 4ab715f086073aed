"""An engine of another process is called as one of this process is: every call arrives with what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from tests.scheduler.fixtures import NAMESPACE
from tests.scheduler.virtual_time import LoopRuntime, run_virtual

from dualpath.core.ids import BlockKey, EngineId, NodeId, PeerId, RequestId
from dualpath.core.plan import Role
from dualpath.core.request import Request, SamplingParams, TokenEvent
from dualpath.core.stats import EngineStats
from dualpath.engine.api import DecodeOrder, DecodeStep, EngineInfo, PrefillOrder, ReadOutcome
from dualpath.engine.remote import wire
from dualpath.engine.remote.client import RemoteDecodeEngine, RemotePrefillEngine
from dualpath.engine.remote.host import EngineServer
from dualpath.engine.remote.link import LinkConfig, NodeLink

PREFILL, DECODE, NODE = EngineId("pe0"), EngineId("de0"), NodeId("n")
KEY, PEER, ID = BlockKey(b"k" * 16), PeerId("other.1"), RequestId("r")
REQUEST = Request(ID, (1, 2, 3), SamplingParams(max_tokens=2))
PREFILL_ORDER = PrefillOrder(REQUEST, 0, frozenset({0}), PEER, (4,), (KEY,))
DECODE_ORDER = DecodeOrder(REQUEST, 0, TokenEvent(9), (KEY,))
INFO = EngineInfo(PREFILL, PeerId("pe0.a"), NODE, Role.PREFILL, 100, 100, b"p")
STATS = EngineStats(PREFILL, NODE, Role.PREFILL)
OUTCOME = ReadOutcome(frozenset({1}), frozenset({2}), frozenset({3}), 7, ((3, 30),))


class Recorder:
    """Keeps what it is asked, and answers as it is told to."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._answers = answers

    def __getattr__(self, name: str) -> Any:
        async def answer(*arguments: Any) -> Any:
            self.asked.append((name, *arguments))
            return self._answers.get(name)

        async def stream(*arguments: Any) -> AsyncIterator[Any]:
            self.asked.append((name, *arguments))
            for item in self._answers[name]:
                yield item

        return stream if isinstance(self._answers.get(name), list) else answer


class Line:
    """To a node in this process with an engine of each role."""

    def __init__(self, server: EngineServer) -> None:
        infos = (replace(INFO, engine_id=DECODE, role=Role.DECODE, peer_metadata=b"d"), INFO)
        self._opened = wire.Opened("a", (), None, wire.NodeReport(NAMESPACE, "m", 100, infos, b"", "h", 1))
        self._server = server

    async def open(self, session: str) -> bytes:
        await self._server.open(session)
        return wire.encode(self._opened)

    async def send(self, session: str, batch: bytes) -> None:
        self._server.receive(session, batch)

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        return await self._server.poll(session, max_wait_s)

    def end_process(self) -> None: ...


def test_every_call_arrives_as_it_was_made_and_is_answered() -> None:
    steps = [DecodeStep(admitted=True), DecodeStep((TokenEvent(5),), writing=(KEY,))]
    answers = {"read": OUTCOME, "stats": STATS, "release": True, "prefill": [None, TokenEvent(5)]}
    prefill_there = Recorder(answers)
    decode_there = Recorder({**answers, "reserve": (6, 7), "release": None, "decode": steps})

    async def scenario() -> None:
        server = EngineServer({PREFILL: prefill_there, DECODE: decode_there})  # type: ignore[dict-item]
        link = NodeLink(NODE, Line(server), LinkConfig(), lambda *_: None, lambda _: None, LoopRuntime())
        await link.start()
        prefill, decode = RemotePrefillEngine(link, PREFILL), RemoteDecodeEngine(link, DECODE)
        assert (prefill.info.peer_metadata, decode.info.peer_metadata) == (b"p", b"d")
        for engine in (prefill, decode):
            await engine.add_peer(b"m")
            await engine.remove_peer(PEER)
            assert await engine.read(ID, [(1, KEY)]) == OUTCOME
            assert await engine.stats() == STATS
        await prefill.peer_at_rest(PEER)
        await prefill.reserve(ID, 2, 3)
        assert [event async for event in prefill.prefill(PREFILL_ORDER)] == [None, TokenEvent(5)]
        assert await prefill.release(ID) is True
        assert await decode.reserve(ID, 2) == (6, 7)
        assert [step async for step in decode.decode(DECODE_ORDER)] == steps
        await decode.stop(ID)
        await decode.release(ID)
        await link.close()
        assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    run_virtual(scenario())
    both = [("add_peer", b"m"), ("remove_peer", PEER), ("read", ID, [(1, KEY)]), ("stats",)]
    own = [("peer_at_rest", PEER), ("reserve", ID, 2, 3), ("prefill", PREFILL_ORDER), ("release", ID)]
    assert prefill_there.asked == both + own
    own = [("reserve", ID, 2), ("decode", DECODE_ORDER), ("stop", ID), ("release", ID)]
    assert decode_there.asked == both + own

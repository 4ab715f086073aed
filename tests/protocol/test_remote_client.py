"""An engine of another process is called as one of this process is: every call arrives with what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from tests.protocol.line import NODE, Line
from tests.scheduler.virtual_time import LoopRuntime, run_virtual

from dualpath.core.errors import PathBrokenError
from dualpath.core.ids import BlockKey, EngineId, PeerId, RequestId
from dualpath.core.plan import Role
from dualpath.core.request import Request, SamplingParams, TokenEvent
from dualpath.core.stats import EngineStats
from dualpath.protocol.api import PROTOCOLS, DecodeOrder, DecodeStep, EngineInfo, PrefillOrder, ReadOutcome
from dualpath.protocol.client import RemoteDecodeEngine, RemotePrefillEngine
from dualpath.protocol.host import EngineServer, Served
from dualpath.protocol.node_link import LinkConfig, NodeLink

PREFILL, DECODE = EngineId("pe0"), EngineId("de0")
KEY, PEER, ID = BlockKey(b"k" * 16), PeerId("other.1"), RequestId("r")
REQUEST = Request(ID, (1, 2, 3), SamplingParams(max_tokens=2))
PREFILL_ORDER = PrefillOrder(REQUEST, 0, frozenset({0}), PEER, (4,), (KEY,))
DECODE_ORDER = DecodeOrder(REQUEST, 0, TokenEvent(9), (KEY,))
INFO = EngineInfo(PREFILL, PeerId("pe0.a"), NODE, Role.PREFILL, 100, 100, b"p")
INFOS = (replace(INFO, engine_id=DECODE, role=Role.DECODE, peer_metadata=b"d"), INFO)
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


def test_every_call_arrives_as_it_was_made_and_is_answered() -> None:
    steps = [DecodeStep(admitted=True), DecodeStep((TokenEvent(5),), writing=(KEY,))]
    answers = {"read": OUTCOME, "stats": STATS, "release": True, "prefill": [None, TokenEvent(5)]}
    prefill_there = Recorder(answers)
    decode_there = Recorder({**answers, "reserve": (6, 7), "release": None, "decode": steps})

    async def scenario() -> None:
        engines = {PREFILL: Served(prefill_there, PROTOCOLS[Role.PREFILL])}
        server = EngineServer(engines | {DECODE: Served(decode_there, PROTOCOLS[Role.DECODE])})
        link = NodeLink(NODE, Line(server, INFOS), LinkConfig(), lambda *_: None, lambda _: None, LoopRuntime())
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
        await asyncio.sleep(0.001)  # what it has cancelled ends
        assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    run_virtual(scenario())
    both = [("add_peer", b"m"), ("remove_peer", PEER), ("read", ID, [(1, KEY)], b""), ("stats",)]
    own = [("peer_at_rest", PEER), ("reserve", ID, 2, 3), ("prefill", PREFILL_ORDER), ("release", ID)]
    assert prefill_there.asked == both + own
    own = [("reserve", ID, 2), ("decode", DECODE_ORDER), ("stop", ID), ("release", ID)]
    assert decode_there.asked == both + own


def test_a_stream_that_fails_over_there_fails_here_after_its_items() -> None:
    class Failing:
        async def prefill(self, order: PrefillOrder) -> AsyncIterator[TokenEvent | None]:
            yield None
            raise PathBrokenError("no way")

    async def scenario() -> None:
        server = EngineServer({PREFILL: Served(Failing(), PROTOCOLS[Role.PREFILL])})
        link = NodeLink(NODE, Line(server, INFOS), LinkConfig(), lambda *_: None, lambda _: None, LoopRuntime())
        await link.start()
        events = RemotePrefillEngine(link, PREFILL).prefill(PREFILL_ORDER)
        assert await anext(events) is None
        with pytest.raises(PathBrokenError, match="no way"):
            await anext(events)
        await link.close()

    run_virtual(scenario())

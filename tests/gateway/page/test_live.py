"""The live page over HTTP: its files, its stream, keys, the bound on pages."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import httpx
import pytest
from msgspec import to_builtins
from tests.gateway.conftest import Serving
from tests.gateway.fakes import STATS, FakeBackend

from dualpath.core.errors import EngineLostError
from dualpath.core.ids import RequestId
from dualpath.core.request import RequestRecord
from dualpath.core.stats import ClusterStats, NodeStats, StoreStats
from dualpath.gateway.page import live, routes
from dualpath.gateway.page.live import LiveView
from dualpath.gateway.page.minute_replay import MinuteReplay
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.sse import data_of
from dualpath.gateway.verdict.client import take_look

MAX_PAGES = 16
KEYS = GatewaySettings(api_keys=("user",), admin_keys=("boss",))
NODES = tuple(NodeStats(e.node_id, e.role, (e.engine_id,), storage_nic_bytes_per_s=1e6) for e in STATS.engines)


class WatchedBackend(FakeBackend):
    """Reads 500,000 bytes from one look to the next, on n1."""

    num_looks = 0
    is_lost = False

    async def stats(self) -> ClusterStats:
        if self.is_lost:
            raise EngineLostError("pe0 is gone")
        self.num_looks += 1
        engine = replace(STATS.engines[1], nic_read_bytes=500_000 * self.num_looks)
        engines = (STATS.engines[0], engine)
        return ClusterStats(engines, nodes=NODES, store=StoreStats(), index_blocks=7)


class SilentBackend(FakeBackend):
    async def stats(self) -> ClusterStats:
        await asyncio.Event().wait()
        raise AssertionError


def _view(backend: FakeBackend) -> LiveView:
    return LiveView(backend, MinuteReplay(backend, None))


def _read(event: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(data_of(event))
    return found


async def events(url: str, num: int) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    async with httpx.AsyncClient() as client, client.stream("GET", f"{url}/dualpath/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: ")))
            if len(seen) == num:
                break
    return seen


async def test_the_stream_says_what_flows_and_what_binds(serving: Serving) -> None:
    backend = WatchedBackend()
    async with serving(backend) as url:
        async with httpx.AsyncClient() as client:
            await client.post(f"{url}/v1/completions", json={"prompt": "abc"})
        first, second = await events(url, 2)
    assert (first["flows"], first["verdict"]["state"]) == ({}, "unknown")
    assert second["flows"]["n1"]["storage_read"] > 0
    assert second["flows"]["n0"]["storage_read"] == 0
    assert first["panels"] is None
    assert second["panels"]["interval_s"] == pytest.approx(second["taken_s"] - first["taken_s"], abs=0.01)
    assert second["stats"]["nodes"][1]["node_id"] == "n1"
    assert second["requests"][0]["phases_s"] == {"prefilling": 0.5, "decoding": 1.0}
    assert second["verdict"]["missing"] == []


class RunningBackend(WatchedBackend):
    """One request, which waits all the time; its record is the same object at every look, as the scheduler's is."""

    def recent(self, limit: int) -> list[RequestRecord]:
        self.record_of_all.phases_s = {"queued": 10.0 * self.num_looks}
        return [self.record_of_all]

    record_of_all = RequestRecord(RequestId("r"), 0.0, 10)


async def test_how_long_running_requests_have_waited_between_looks(serving: Serving) -> None:
    async with serving(RunningBackend()) as url:
        _, second = await events(url, 2)
    assert second["verdict"]["requests_in_phase"]["queued"] > 5


async def test_page_and_why_count_the_requests_of_all_gateways(serving: Serving) -> None:
    backend = WatchedBackend()
    backend.control.in_phase = {"queued": 2, "decoding": 5, "prefilling": 1}
    async with serving(backend) as url:
        (event,) = await events(url, 1)
        look = await asyncio.to_thread(take_look, url, None)
    for stats in (event["stats"], to_builtins(look.stats)):
        assert (stats["num_queued_requests"], stats["num_running_requests"]) == (2, 6)
        assert stats["requests_in_phase"] == backend.control.in_phase


async def test_a_lost_cluster_is_said(serving: Serving) -> None:
    backend = WatchedBackend()
    backend.is_lost = True
    async with serving(backend) as url:
        assert await events(url, 1) == [{"error": "pe0 is gone"}]


async def test_a_cluster_that_says_nothing_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_LOOK_TIMEOUT_S", 0.05)
    view = _view(SilentBackend())
    async with asyncio.timeout(5):
        assert "the cluster does not answer" in str(_read(await view.event())["error"])


async def test_looks_before_a_loss_do_not_count() -> None:
    backend = WatchedBackend()
    view = _view(backend)
    await view.event()
    assert _read(await view.event())["flows"]
    backend.is_lost = True
    await view.event()
    backend.is_lost = False
    assert _read(await view.event())["flows"] == {}


async def test_looks_for_those_who_have_left_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    view = _view(WatchedBackend())
    await view.event()
    monkeypatch.setattr(live, "WINDOW", 0.01)  # seconds
    await asyncio.sleep(0.05)
    assert _read(await view.event())["flows"] == {}


async def test_pages_share_a_sampler_and_are_bounded(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MAX_STREAMS", MAX_PAGES)
    backend = WatchedBackend()
    async with serving(backend) as url, httpx.AsyncClient() as client:
        async with AsyncExitStack() as stack:
            streams = [client.stream("GET", f"{url}/dualpath/events") for _ in range(MAX_PAGES + 1)]
            answers = await asyncio.gather(*map(stack.enter_async_context, streams))
            assert sorted(answer.status_code for answer in answers) == [200] * MAX_PAGES + [503]
            (one,) = [answer for answer in answers if answer.status_code == 503]
            assert one.headers["retry-after"] == "5"
        assert backend.num_looks < MAX_PAGES
        for _ in range(1000):  # until the server has seen that they are gone
            async with client.stream("GET", f"{url}/dualpath/events") as answer:
                if answer.status_code == 200:
                    return
            await asyncio.sleep(0.01)
        raise AssertionError("closed pages are still counted")


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("wrong", 401), ("user", 403), ("boss", 200)])
async def test_the_stream_needs_an_admin_key_and_the_files_none(key: str | None, status: int, serving: Serving) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with serving(WatchedBackend(), settings=KEYS) as url, httpx.AsyncClient(headers=headers) as client:
        async with client.stream("GET", f"{url}/dualpath/events") as answer:
            assert answer.status_code == status
        for name, kind in (("", "text/html"), ("/live.css", "text/css"), ("/live.js", "text/javascript")):
            answer = await client.get(f"{url}/dualpath{name}")
            assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind)
            assert "://" not in answer.text  # works offline

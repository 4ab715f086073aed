"""What /health and /metrics tell of storage that is ill, over a real store: full, stalled, a read that never ends."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from dualpath.cluster import composition
from dualpath.core.runtime import SystemRuntime
from dualpath.gateway.app import create_app
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.models.init import init_model
from dualpath.scheduler import evictor
from dualpath.store import nixl_api
from dualpath.store.files.calls import FileCalls
from dualpath.store.files.store import FileStore
from tests.e2e.cluster_kit import BLOCK_TOKENS, MIB, Reply, all_zero, ask, cluster, settings

PROMPT = [32 + (i * 11 + i * i // 3) % 90 for i in range(6 * BLOCK_TOKENS + 5)]
STALLED = "the storage of 1 nodes does not answer"
FULL = "the store takes no new blocks"
LINGERING = "1 transfers do not end; their memory stays out of use"


class LeapingRuntime(SystemRuntime):
    leapt_s = 0.0

    def now_s(self) -> float:
        return super().now_s() + self.leapt_s


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model("qwen2", tmp_path_factory.mktemp("health") / "model", layers=2)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> LeapingRuntime:
    runtime = LeapingRuntime()
    monkeypatch.setattr(composition, "SystemRuntime", lambda: runtime)
    return runtime


class Gates:
    """Calls that pass here while it is shut never return, whatever those do that come when it is open again."""

    def __init__(self) -> None:
        self.is_shut = False
        self.num_caught, self.max_caught = 0, 1 << 30
        self._end = threading.Event()

    def let(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if self.is_shut and self.num_caught < self.max_caught:
                self.num_caught += 1
                self._end.wait()
            return real(*args)

        return call

    def end(self) -> None:
        self._end.set()


@pytest.fixture
def gates() -> Iterator[Gates]:
    gates = Gates()
    yield gates
    gates.end()


class Server:
    def __init__(self, embedded: Any, http: httpx.AsyncClient) -> None:
        self.embedded, self._http = embedded, http

    async def problems(self) -> list[str]:
        """By the latest word of all engines."""
        await self._http.get("/metrics")
        found: list[str] = (await self._http.get("/health")).json()["problems"]
        return found

    async def metric(self, name: str) -> float:
        lines = (await self._http.get("/metrics")).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    async def until_caught(self, gates: Gates) -> None:
        async with asyncio.timeout(10.0):
            while not gates.num_caught:  # noqa: ASYNC110  (threads have no event for it)
                await asyncio.sleep(0.01)

    async def stuck(self, gates: Gates) -> tuple[list[int], asyncio.Task[Reply]]:
        """What the prompt is answered, and a second request of it whose call hangs."""
        first = await ask(self.embedded, PROMPT, 4)
        await all_zero(self.embedded)
        gates.is_shut = True
        second = asyncio.create_task(ask(self.embedded, PROMPT, 4))
        await self.until_caught(gates)
        return first.token_ids, second

    async def until(self, *problems: str) -> None:
        async with asyncio.timeout(20.0):
            while await self.problems() != list(problems):  # noqa: ASYNC110  (threads have no event for it)
                await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(model_dir: Path, store: Path) -> AsyncIterator[Server]:
    async with cluster(settings(model_dir, store.as_uri(), path="prefill", decode=1)) as embedded:
        transport = httpx.ASGITransport(create_app(embedded.service, Tokenizer.load(model_dir)))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            server = Server(embedded, http)
            await server.until()
            yield server


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={2 * MIB}", "tmpfs", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


@pytest.mark.root
async def test_a_full_disk_is_told_until_there_is_room(model_dir, small_disk, monkeypatch):
    monkeypatch.setattr(evictor, "_LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(evictor, "_SHORT_PAUSE_S", 0.1)
    async with serving(model_dir, small_disk) as server:
        others = small_disk / "others"
        with others.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        first = await ask(server.embedded, PROMPT, 4)
        await server.until(FULL)
        assert await server.metric("dualpath_blocks_not_persisted_total") > 0
        assert (await ask(server.embedded, PROMPT, 4)).token_ids == first.token_ids
        others.unlink()
        await server.until()
        await ask(server.embedded, PROMPT, 4)
        await all_zero(server.embedded)
        assert (await ask(server.embedded, PROMPT, 4)).record.num_hit_tokens == 6 * BLOCK_TOKENS


async def test_a_store_that_stalls_is_told_until_it_answers_anew(model_dir, tmp_path, runtime, gates, monkeypatch):
    """The calls that hang never return."""
    monkeypatch.setattr(FileCalls, "open_block", gates.let(FileCalls.open_block))
    monkeypatch.setattr(FileStore, "try_write", gates.let(FileStore.try_write))
    async with serving(model_dir, tmp_path) as server:
        truth, second = await server.stuck(gates)
        runtime.leapt_s += 6.0
        await server.until(STALLED)
        assert await server.metric("dualpath_storage_stalled_seconds") > 5.0
        while not second.done():  # deadlines on both nodes, one after the other
            runtime.leapt_s += 3.0
            await asyncio.sleep(0.05)
        assert (await second).token_ids == truth
        await server.until("the storage of 2 nodes does not answer")
        spared = await ask(server.embedded, PROMPT, 4)
        assert (spared.token_ids, spared.record.num_hit_tokens) == (truth, 0)
        gates.is_shut = False
        runtime.leapt_s += 60.0  # the next try is due
        await server.until()
        assert (await ask(server.embedded, PROMPT, 4)).record.num_hit_tokens == 6 * BLOCK_TOKENS
        gates.end()


async def test_a_read_that_never_ends_is_told_and_keeps_its_slot_only(model_dir, tmp_path, runtime, gates, monkeypatch):
    monkeypatch.setattr(nixl_api, "has_uring", lambda _: False)
    monkeypatch.setattr(os, "preadv", gates.let(os.preadv))
    gates.max_caught = 1
    async with serving(model_dir, tmp_path) as server:
        truth, second = await server.stuck(gates)
        runtime.leapt_s += 11.0
        reply = await second
        assert (reply.token_ids, reply.record.num_hit_tokens) == (truth, 6 * BLOCK_TOKENS)
        await server.until(LINGERING)  # and storage works, as was tried
        assert await server.metric("dualpath_transfers_lingering") == 1
        assert await server.metric("dualpath_staging_slots_used") == 1
        assert (await ask(server.embedded, PROMPT, 4)).record.num_hit_tokens == 6 * BLOCK_TOKENS
        gates.end()
        await server.until()
        await all_zero(server.embedded)

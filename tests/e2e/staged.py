"""Six clusters, each with one thing wrong, under a load that shows it, and a gateway with the real page before them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dualpath.cluster.remote import RemoteCluster
from dualpath.config import MemoryConfig, NodeConfig
from dualpath.core.errors import DualPathError
from dualpath.gateway.app import create_app
from dualpath.gateway.http.server import serve
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.gateway.verdict.change import ClusterLook
from dualpath.gateway.verdict.judge import ResourceVerdict, judge
from tests.e2e.cluster_kit import BLOCK_TOKENS, ask
from tests.e2e.remote_kit import LoopChannel, node_settings, remote_cluster

CONTEXT = 1024
BASE = [32 + (i * 7 + i * i // 5) % 90 for i in range(40 * BLOCK_TOKENS)]


@dataclass(frozen=True)
class Stage:
    """``names``: what the verdict must name, and where. ``trouble`` goes on while it is looked at."""

    resource: str
    where: str
    nic_mbps: dict[str, float] = field(default_factory=dict)  # by node; others 400
    path: str = "split"
    decode: int = 1
    memory: dict[str, Any] = field(default_factory=dict)
    num_agents: int = 6
    new_tokens: int = 8
    answer_tokens: int = 2
    hits: bool = True
    trouble: Callable[[Path, dict[str, LoopChannel]], Awaitable[None]] | None = None


def _flip(store: Path) -> None:
    for path in store.rglob("*"):
        with suppress(OSError):
            if path.is_file() and path.stat().st_size > 5000:
                with path.open("r+b") as file:
                    file.seek(-7, 2)
                    byte = file.read(1)
                    file.seek(-7, 2)
                    file.write(bytes([byte[0] ^ 0xFF]))


async def corrupt(store: Path, _: dict[str, LoopChannel]) -> None:
    """Flip a byte of every object, again and again: what was found damaged is written anew."""
    while True:
        await asyncio.to_thread(_flip, store)
        await asyncio.sleep(0.3)


async def silence(_: Path, channels: dict[str, LoopChannel]) -> None:
    channels["de1"].freeze()
    await asyncio.sleep(3600)


STAGES = {
    "slow-storage-nic": Stage("storage NIC", "node de0 (decode), read", {"de0": 2.0}, "decode", decode=2),
    "little-staging": Stage(
        "staging slots",
        "",
        {"pe0": 80.0, "de0": 80.0},
        memory={"max_context_tokens": CONTEXT, "decode_staging_bytes": CONTEXT * 1100},
        num_agents=8,
        new_tokens=200,  # so that a NIC rests while a prompt is computed and written
    ),
    "decode-memory": Stage(
        "decode device memory",
        "decode engine",
        memory={"max_context_tokens": CONTEXT, "decode_kv_tokens": 1200},
        num_agents=8,
        answer_tokens=200,
    ),
    "prefill-compute": Stage("prefill compute", "prefill engines", hits=False, new_tokens=900, num_agents=8),
    "corrupt-store": Stage("damaged or failed blocks", "engine", trouble=corrupt),
    "silent-node": Stage("silent node", "node de1", decode=2, trouble=silence),
}


@dataclass
class Staged:
    cluster: RemoteCluster
    url: str

    async def verdict(self, interval_s: float) -> ResourceVerdict:
        before = await self._look()
        await asyncio.sleep(interval_s)
        return judge(before, await self._look())

    async def _look(self) -> ClusterLook:
        service = self.cluster.service
        records = [replace(record, phases_s=dict(record.phases_s)) for record in service.recent(1000)]
        return ClusterLook(time.monotonic(), await service.stats(), records)


@asynccontextmanager
async def staged(stage: Stage, model_dir: Path, store: Path) -> AsyncIterator[Staged]:
    """Runs under its load, and over HTTP, as long as the block."""
    config = node_settings(model_dir, f"file://{store}", decode=stage.decode, path=stage.path)
    nodes = tuple(_paced(node, stage.nic_mbps.get(node.name, 400.0)) for node in config.nodes)
    memory = {"max_context_tokens": 2048, "decode_kv_tokens": 32768} | stage.memory
    config = replace(config, nodes=nodes, memory=MemoryConfig(**memory))
    async with remote_cluster(config) as (cluster, channels), _served(cluster, model_dir) as url:
        await ask(cluster, BASE, 1)
        tasks = [asyncio.create_task(_agent(cluster, stage, number)) for number in range(stage.num_agents)]
        if stage.trouble is not None:
            tasks.append(asyncio.create_task(stage.trouble(store, channels)))  # type: ignore[arg-type]
        try:
            yield Staged(cluster, url)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _paced(node: NodeConfig, mbps: float) -> NodeConfig:
    return replace(node, storage_nic_mbps=mbps, pace_storage=True)


async def _agent(cluster: RemoteCluster, stage: Stage, number: int) -> None:
    source = random.Random(number)
    while True:
        new = [source.randrange(32, 122) for _ in range(stage.new_tokens)]
        with suppress(DualPathError):
            await ask(cluster, [*BASE, *new] if stage.hits else new, stage.answer_tokens)
        await asyncio.sleep(0)


@asynccontextmanager
async def _served(cluster: RemoteCluster, model_dir: Path) -> AsyncIterator[str]:
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    app = create_app(cluster.service, Tokenizer.load(model_dir))
    told = lambda host, port: listening.set_result(f"http://{host}:{port}")  # noqa: E731
    server = asyncio.create_task(
        serve(app, "127.0.0.1", 0, drain_s=lambda: 1.0, stop=stop, handle_signals=False, on_listening=told)
    )
    try:
        yield await listening
    finally:
        stop.set()
        await server

"""A cluster whose nodes are reached over links, all in the test's process: channels that a test can cut or freeze."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dualpath.cluster.node_process import NodeProcess
from dualpath.cluster.remote import RemoteCluster
from dualpath.config import ClusterConfig, NodeConfig, RayConfig, ServeConfig
from dualpath.core.errors import EngineGoneError
from dualpath.core.ids import NodeId
from tests.e2e.cluster_kit import settings

HEARTBEAT_S = 1.0


class LoopChannel:
    """Leads to a node in this process. The node's engines go on whatever happens to the channel."""

    def __init__(self, config: ServeConfig, node: NodeConfig) -> None:
        self._config, self._node = config, node
        self.process = NodeProcess(config, node)
        self.is_dead = False
        self.num_sent = self.num_killed = 0
        self._open = asyncio.Event()
        self._open.set()

    def freeze(self) -> None:
        """No answer, no error, from now on."""
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    async def die(self) -> None:
        """The process ends, with all its memory."""
        self.is_dead = True
        await self.process.close()

    def restart(self) -> None:
        self.process = NodeProcess(self._config, self._node)
        self.is_dead = False

    async def open(self, session: str) -> bytes:
        return await self._through(lambda: self.process.open(session))

    async def send(self, session: str, batch: bytes) -> None:
        self.num_sent += 1
        await self._through(lambda: self.process.send(session, batch))

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        return await self._through(lambda: self.process.poll(session, max_wait_s))

    def end_process(self) -> None:
        self.num_killed += 1

    async def _through(self, call: Any) -> Any:
        await self._open.wait()
        if self.is_dead:
            raise EngineGoneError("the process has ended")
        answer = await call()
        await self._open.wait()  # an answer may be lost on its way, too
        return answer


def node_settings(model_dir: Path, store_url: str, prefill: int = 1, decode: int = 2, **cluster: Any) -> ServeConfig:
    """As ``cluster_kit.settings``, but the nodes have names of their own."""
    names = [("prefill", f"pe{i}") for i in range(prefill)] + [("decode", f"de{i}") for i in range(decode)]
    return replace(
        settings(model_dir, store_url),
        cluster=ClusterConfig(**{"path": "split", "threads_per_engine": 1} | cluster),
        nodes=tuple(NodeConfig(name=name, role=role) for role, name in names),
        ray=RayConfig(heartbeat_s=HEARTBEAT_S, kill_silent_s=20.0, lease_s=40.0),
    )


@asynccontextmanager
async def remote_cluster(config: ServeConfig) -> AsyncIterator[tuple[RemoteCluster, dict[str, LoopChannel]]]:
    channels = {NodeId(node.name): LoopChannel(config, node) for node in config.nodes}
    cluster = RemoteCluster(config, channels, progress=lambda _: None)
    await cluster.start()
    try:
        yield cluster, {str(name): channel for name, channel in channels.items()}
    finally:
        for channel in channels.values():
            channel.thaw()
        await cluster.close(10.0)
        for channel in channels.values():
            await channel.process.close()


async def until(is_true: Callable[[], bool], deadline_s: float = 20.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not is_true():  # noqa: ASYNC110  (many parts settle; no one event says so)
            await asyncio.sleep(0.02)

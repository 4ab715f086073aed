"""Nodes in processes of their own on one host: KV crosses between them, and only loopback leads into their memory."""

from __future__ import annotations

import asyncio
import os
import pickle
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dualpath.cluster.free_ports import free_ports
from dualpath.cluster.remote import RemoteCluster
from dualpath.config import NodeConfig, RayConfig, ServeConfig
from dualpath.core.ids import NodeId
from dualpath.models.init import init_model
from dualpath.protocol.socket_channel import SocketChannel
from dualpath.ray.actors import node_environment
from dualpath.testbed import rollout_node
from dualpath.testbed.rollout_node import NodeOrder
from tests.e2e.cluster_kit import conversations, hold, settings
from tests.listening import listening

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]  # processes that import torch

NODES = (NodeConfig(name="pe0", role="prefill"), NodeConfig(name="de0", role="decode"))


@contextmanager
def node_process(config: ServeConfig, node: NodeConfig) -> Iterator[tuple[int, SocketChannel]]:
    order = NodeOrder(config, node, "127.0.0.1", free_ports(1)[0], secrets.token_bytes(32))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("UCX_")}
    environment = inherited | node_environment(config, node)
    process = subprocess.Popen([sys.executable, "-m", rollout_node.__name__], stdin=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(order))
    process.stdin.close()
    try:
        yield process.pid, SocketChannel(order.host, order.port, order.secret)
    finally:
        process.terminate()
        process.wait(60)


@asynccontextmanager
async def running(config: ServeConfig) -> AsyncIterator[tuple[RemoteCluster, list[int]]]:
    with node_process(config, NODES[0]) as (first, to_first), node_process(config, NODES[1]) as (second, to_second):
        channels = {NodeId("pe0"): to_first, NodeId("de0"): to_second}
        remote = RemoteCluster(config, channels, lambda _: None)
        await remote.start()
        try:
            yield remote, [first, second]
        finally:
            await remote.close(10.0)
            for channel in channels.values():
                await channel.close()


async def test_turns_equal_transformers_and_nothing_but_loopback_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UCX_TLS", "UCX_NET_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    model_dir = init_model("llama", tmp_path / "model", layers=2)
    config = settings(model_dir, f"file://{tmp_path}/kv", prefill=1, decode=1, path="split")
    config = replace(config, nodes=NODES, ray=RayConfig(start_s=300))
    talks = conversations(model_dir, 2, 3)
    async with running(config) as (remote, processes):
        records = await asyncio.gather(*(hold(remote, talk, "across") for talk in talks))
        assert all(record.num_hit_tokens for record in records[0][1:])
        for pid in processes:
            assert len(listening(pid)) > 1, "UCX has no port: nothing was tested"
            assert {str(address) for address, _ in listening(pid)} == {"127.0.0.1"}

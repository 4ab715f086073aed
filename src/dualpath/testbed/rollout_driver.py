"""The part of a rollout that runs on the testbed's switch: agents, scheduler, and the start of all other processes."""

from __future__ import annotations

import os
import pickle
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from dualpath.bench.run_rollout import DRAIN_S, run_on
from dualpath.bench.settings import RolloutSettings, serve_config
from dualpath.bench.workload import Script, max_context_tokens
from dualpath.cluster.remote import RemoteCluster
from dualpath.cluster.setup import Progress, quiet_process
from dualpath.cluster.vllm.cluster import VllmCluster
from dualpath.config import NodeConfig, ServeConfig
from dualpath.core.errors import ConfigError, DualPathError
from dualpath.core.ids import NodeId
from dualpath.core.parent import end_with_parent
from dualpath.scheduler.service import Service
from dualpath.testbed.lifecycle import Testbed
from dualpath.testbed.rollout_nics import watching_nics
from dualpath.testbed.rollout_node import NodeOrder
from dualpath.testbed.rollout_processes import NodeChannel, StorageServer, storage_server
from dualpath.testbed.rollout_servers import server_places, started_servers
from dualpath.testbed.rollout_settings import TestbedRolloutSettings, engine_hosts, testbed_spec, with_nodes
from dualpath.testbed.spec import COMPUTE_NETWORK

_NODE_PORT = 9100  # of each node on its own compute NIC, in model execution's class: control must not wait behind KV


@dataclass(frozen=True, slots=True)
class DriverOrder:
    settings: TestbedRolloutSettings
    directory: Path  # scratch: the storage host's disk


def main() -> int:
    end_with_parent()
    quiet_process()
    order: DriverOrder = pickle.load(sys.stdin.buffer)
    try:
        return run_on(partial(TestbedOpener, order), order.settings)
    except DualPathError as error:
        print(f"dualpath: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


class TestbedOpener:
    """Makes each system's cluster: a storage server and nodes in processes that nobody has used."""

    __test__ = False

    def __init__(self, order: DriverOrder, settings: RolloutSettings, scripts: list[Script], console: Console) -> None:
        self._settings, self._directory, self._console = order.settings, order.directory, console
        self._num_agents, self._context_tokens = len(scripts), max_context_tokens(scripts)
        self._testbed = Testbed(testbed_spec(order.settings))
        self.kv_dtype = "unknown"
        self.measured: dict[str, dict[str, Any]] = {}

    @asynccontextmanager
    async def open(self, system: str) -> AsyncIterator[Service]:
        async with storage_server(self._testbed, self._directory / system) as server, AsyncExitStack() as stack:
            os.environ.update(server.environment)  # the scheduler lists and deletes blocks, too
            config = serve_config(self._settings, system, server.url(system), self._context_tokens, self._num_agents)
            with self._console.status(f"{system}: starting") as status:
                cluster = self._cluster(config, server, stack, lambda line: status.update(f"{system}: {line}"))
                await cluster.start()
            self.kv_dtype = cluster.namespace.kv_dtype
            try:
                async with watching_nics(self._testbed.spec, cluster.service) as watch:
                    yield cluster.service
                self.measured[system] = watch.report()
            except BaseException:
                await cluster.close(0.0)
                raise
            await cluster.close(DRAIN_S)

    def _cluster(
        self, config: ServeConfig, server: StorageServer, stack: AsyncExitStack, progress: Progress
    ) -> RemoteCluster:
        if config.cluster.engine == "vllm":
            places = server_places(self._testbed, engine_hosts(self._settings), server.environment)
            servers = started_servers(config, places, progress, self._directory / "logs")
            return VllmCluster(config, progress, servers=servers)
        config = with_nodes(config, self._settings)
        channels = {NodeId(node.name): self._channel(config, node, server) for node in config.nodes}
        for channel in channels.values():
            stack.push_async_callback(channel.finish)
        return RemoteCluster(config, channels, progress)

    def _channel(self, config: ServeConfig, node: NodeConfig, server: StorageServer) -> NodeChannel:
        address = str(self._testbed.spec.address(COMPUTE_NETWORK, node.name))
        order = NodeOrder(config, node, address, _NODE_PORT, secrets.token_bytes(32))
        return NodeChannel(self._testbed, order, server.environment)


if __name__ == "__main__":
    sys.exit(main())

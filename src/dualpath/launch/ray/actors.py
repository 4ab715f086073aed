"""The two kinds of actors: a node with all its engines, and the gateway with the scheduler.

A node is one process with all its engines: they share its storage NIC and its pacing, a device's weights exist once,
and one message carries the news of all of them (the paper's group of engines with a leader, section 6).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

from dualpath.config import NodeConfig, ServeConfig
from dualpath.core.errors import DualPathError
from dualpath.core.ids import NodeId
from dualpath.engine.remote.wire import Failure
from dualpath.launch.node_process import NodeProcess, watch_lease
from dualpath.launch.ray.channel import RayChannel
from dualpath.launch.ray.runtime import GATEWAY, Handle, find_actor, import_ray, node_actor_name
from dualpath.launch.setup import set_up_process
from dualpath.launch.ucx_network import within_host

log = logging.getLogger(__name__)

_RETRY_S = 2.0
_LOOK_S = 0.1


class NodeActor:
    """A ``NodeProcess`` as an actor; its methods run on the actor's event loop."""

    def __init__(self, config: ServeConfig, node: NodeConfig) -> None:
        set_up_process(config)
        self._process = NodeProcess(config, node)
        watch_lease(self._process, config.ray.lease_s)

    async def open(self, session: str) -> bytes:
        return await self._process.open(session)

    async def send(self, session: str, batch: bytes) -> None:
        await self._process.send(session, batch)

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        return await self._process.poll(session, max_wait_s)

    async def close(self) -> None:
        await self._process.close()


@dataclass(frozen=True, slots=True)
class Look:
    """What the gateway says of its start."""

    lines: tuple[str, ...] = ()
    address: tuple[str, int] | None = None  # where it listens
    failure: Failure | None = None
    has_ended: bool = False


class GatewayActor:
    """Gateway and scheduler on an event loop of their own, so that one restarted by Ray starts again by itself."""

    def __init__(self, config: ServeConfig, namespace: str) -> None:
        set_up_process(config)
        self._config, self._namespace = config, namespace
        self._lines: list[str] = []
        self._address: tuple[str, int] | None = None
        self._failure: Failure | None = None
        self._drain_s = config.gateway.drain_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._thread.start()

    def look(self, num_seen: int, wait_s: float) -> Look:
        """News after the first ``num_seen`` lines, as soon as there is any."""
        until_s = time.monotonic() + wait_s
        while time.monotonic() < until_s and len(self._lines) <= num_seen and not (self._address or self._failure):
            time.sleep(_LOOK_S)
        return Look(tuple(self._lines[num_seen:]), self._address, self._failure, not self._thread.is_alive())

    def stop(self, drain_s: float) -> None:
        """Let running requests end for ``drain_s``, then end everything; returns when that is done."""
        self._drain_s = drain_s
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        from dualpath.gateway.server import run

        while True:
            try:
                run(self._serve())
                return
            except Exception as error:
                if not isinstance(error, DualPathError):
                    log.exception("the gateway failed")
                self._failure = Failure.of(error)
                if not import_ray().get_runtime_context().was_current_actor_reconstructed:
                    return
                log.error("the gateway cannot start again yet: %s", error)
                time.sleep(_RETRY_S)

    async def _serve(self) -> None:
        from dualpath.launch.remote_cluster import RemoteCluster
        from dualpath.launch.serve import serve_cluster

        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        nodes = [node for node in self._config.nodes if node.role != GATEWAY]
        channels = {NodeId(node.name): RayChannel(self._actor(node)) for node in nodes}
        cluster = RemoteCluster(self._config, channels, self._lines.append)
        await serve_cluster(
            self._config,
            cluster,
            stop=self._stop,
            on_started=lambda: None,
            on_listening=self._on_listening,
            closing_s=lambda: self._drain_s,
        )

    def _actor(self, node: NodeConfig) -> Handle:
        actor = find_actor(import_ray(), node_actor_name(node.name), self._namespace)
        if actor is None:
            raise DualPathError(f"node {node.name} is not there")
        return actor

    def _on_listening(self, host: str, port: int) -> None:
        self._failure, self._address = None, (host, port)


def start_node(config: ServeConfig, node: NodeConfig, namespace: str) -> Handle:
    """Ask Ray for the node's process, on a host that offers its resource. Returns at once."""
    options: dict[str, Any] = {"resources": {node.ray_resource: 1}} | _common(namespace)
    options["runtime_env"] = {"env_vars": node_environment(config, node) | _inherited()}
    if num_gpus := _num_gpus(config, node):
        options["num_gpus"] = num_gpus
    actor = import_ray().remote(NodeActor)
    return actor.options(name=node_actor_name(node.name), max_concurrency=1000, **options).remote(config, node)


def start_gateway(config: ServeConfig, namespace: str) -> Handle:
    """On the host of the gateway node; without one, on this process's own."""
    ray = import_ray()
    options = _common(namespace)
    node = next((node for node in config.nodes if node.role == GATEWAY), None)
    if node is not None:
        options["resources"] = {node.ray_resource: 1}
        options["runtime_env"] = {"env_vars": node.environment | _inherited()}
    else:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = ray.get_runtime_context().get_node_id()
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(GatewayActor).options(name=GATEWAY, max_concurrency=8, **options).remote(config, namespace)


def _common(namespace: str) -> dict[str, Any]:
    """Actors outlive the process that made them, and are restarted as often as need be."""
    return {
        "namespace": namespace,
        "lifetime": "detached",
        "max_restarts": -1,
        "max_task_retries": 0,
        "num_cpus": 0,
    }


def _inherited() -> dict[str, str]:
    names = ("NIXL_LOG_LEVEL", "UCX_LOG_LEVEL")
    return {name: os.environ[name] for name in names if name in os.environ}


def node_environment(config: ServeConfig, node: NodeConfig) -> dict[str, str]:
    """A Ray that is started here has all nodes on this host: no other needs to reach their memory."""
    is_local = config.ray.address is None and config.memory.copies != "nic"
    return (within_host(os.environ | node.environment) if is_local else {}) | node.environment


def _num_gpus(config: ServeConfig, node: NodeConfig) -> int:
    """One for each engine, where the node is to run on GPUs: Ray then shows its process no others."""
    device = node.device or config.model.device
    if device == "auto":
        return node.engines if import_ray().cluster_resources().get("GPU", 0) else 0
    return node.engines if device.startswith("cuda") else 0

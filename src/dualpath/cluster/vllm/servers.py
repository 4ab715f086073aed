"""vLLM servers as a cluster knows them: started here, watched and ended with us, or started by others and joined."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

from dualpath.cluster.setup import Progress
from dualpath.cluster.vllm.command import API_KEY_VARIABLE, arguments, server_environment
from dualpath.cluster.vllm.environment import find_environment, link_package
from dualpath.cluster.vllm.plan import ServerPlace, connector_settings, joined_places, sizes_of
from dualpath.cluster.vllm.process import ServerProcess
from dualpath.config import ServeConfig
from dualpath.core.errors import DualPathError, EngineGoneError
from dualpath.core.handshake import read_secret
from dualpath.core.ids import NodeId
from dualpath.core.plan import Role
from dualpath.protocol.channel import Channel
from dualpath.protocol.socket_channel import SocketChannel
from dualpath.vllm.api_server import ApiServer

_REPORT_S = 15.0
_AGAIN_S = (1.0, 5.0, 30.0)  # before a server is started again, longer each time


class Servers(Protocol):
    """All servers of a cluster, each with a node of its own. Event loop only."""

    @property
    def roles(self) -> Mapping[NodeId, Role]: ...

    @property
    def apis(self) -> Mapping[NodeId, ApiServer]: ...

    def channel(self, node_id: NodeId) -> Channel:
        """To the node in a server."""
        ...

    def start(self) -> None: ...

    async def until_ended(self, node_id: NodeId) -> None:
        """Of a server that is not ready yet: raises DualPathError where it is known to have ended, else waits on."""
        ...

    def watch(self) -> None:
        """All have been ready: from now on whatever ends is started again, by whoever has started it."""
        ...

    async def close(self) -> None:
        """End what is ours to end."""
        ...


async def _whenever() -> None:
    """At once."""


class StartedServers:
    """``secret`` of the control lines and ``api_key`` are drawn for this run. Event loop only."""

    def __init__(
        self,
        config: ServeConfig,
        places: tuple[ServerPlace, ...],
        progress: Progress,
        *,
        marks: Mapping[str, str] | None = None,
        wanted: Callable[[], Awaitable[None]] = _whenever,
    ) -> None:
        """``marks``: also in the servers' environment. ``wanted``: returns when a server that has ended is to be
        started again. Raises ConfigError where vLLM cannot be run.
        """
        self._progress, self._wanted = progress, wanted
        self.places = places
        environment = find_environment(config.vllm)
        geometry, sizes = sizes_of(config)
        self.secret, self.api_key = secrets.token_hex(32), secrets.token_hex(32)
        self.log_dir = config.vllm.log_dir or Path(tempfile.mkdtemp(prefix="dualpath-vllm-"))
        self.log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        package = link_package(self.log_dir / "package")
        self.num_devices = environment.num_devices  # CUDA; 0: vLLM computes on CPUs
        on_cpu = self.num_devices == 0
        self.processes: Mapping[str, ServerProcess] = {
            place.name: ServerProcess(
                place.name,
                [
                    *place.on.command,
                    str(environment.python),
                    *arguments(
                        config,
                        place,
                        connector_settings(config, place, sizes, lease_s=config.ray.lease_s),
                        geometry,
                        sizes,
                        on_cpu=on_cpu,
                    ),
                ],
                {
                    **server_environment(
                        config,
                        number,
                        len(places),
                        environment,
                        (self.secret, self.api_key),
                        package,
                        host=place.host,
                    ),
                    **place.on.environment,
                    **(marks or {}),
                },
                self.log_dir / f"{place.name}.log",
            )
            for number, place in enumerate(places)
        }
        kind = "a CPU" if on_cpu else f"{environment.num_devices} CUDA devices"
        progress(f"starting vLLM {environment.version} on {kind}, {len(places)}x; logs in {self.log_dir}")
        self.roles = {NodeId(place.name): place.role for place in places}
        self.apis = {NodeId(place.name): ApiServer(place.url, self.api_key) for place in places}
        self._watching: list[asyncio.Task[None]] = []

    def channel(self, node_id: NodeId) -> Channel:
        place = next(place for place in self.places if place.name == node_id)
        return StartedChannel(place, self.secret.encode(), self.processes[node_id])

    def start(self) -> None:
        for process in self.processes.values():
            try:
                process.start()
            except OSError as error:
                raise DualPathError(f"{process.name} cannot be started: {error}") from None

    async def until_ended(self, node_id: NodeId) -> None:
        """Tells how long it takes meanwhile."""
        process, waited_s = self.processes[node_id], 0.0
        ended = asyncio.create_task(process.ended())
        try:
            while not (await asyncio.wait([ended], timeout=_REPORT_S))[0]:
                waited_s += _REPORT_S
                self._progress(f"{node_id}: loading for {waited_s:g} s")
        finally:
            ended.cancel()
        raise DualPathError(process.why_ended())

    def watch(self) -> None:
        """From now on whatever ends is started again; its place is the same."""
        self._watching = [asyncio.create_task(self._watch(process)) for process in self.processes.values()]

    async def _watch(self, process: ServerProcess) -> None:
        number = 0
        while True:
            await process.ended()
            pause_s = _AGAIN_S[min(number, len(_AGAIN_S) - 1)]
            self._progress(f"{process.why_ended()}; it is started again in {pause_s:g} s")
            await process.stop(at_once=True)
            await asyncio.sleep(pause_s)
            await self._wanted()
            try:
                process.start()
            except OSError as error:  # such as a machine that has no memory left: it may have some later
                self._progress(f"{process.name} cannot be started again: {error}")
            number += 1

    async def close(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await asyncio.gather(*(process.stop() for process in self.processes.values()))


class JoinedServers:
    """Those of ``--vllm-join``."""

    def __init__(self, config: ServeConfig) -> None:
        """Raises ConfigError, also where there is no secret."""
        self._secret, api_key = read_secret(os.environ), os.environ.get(API_KEY_VARIABLE)
        self._places = {NodeId(place.name): place for place in joined_places(config)}
        self.roles = {node_id: place.role for node_id, place in self._places.items()}
        self.apis = {node_id: ApiServer(place.url, api_key) for node_id, place in self._places.items()}

    def channel(self, node_id: NodeId) -> Channel:
        place = self._places[node_id]
        return JoinedChannel(place.line_host, place.line_port, self._secret)

    def start(self) -> None:
        """They run."""

    async def until_ended(self, node_id: NodeId) -> None:
        await asyncio.Event().wait()

    def watch(self) -> None:
        """Not ours."""

    async def close(self) -> None:
        """They run on."""


class StartedChannel(SocketChannel):
    """To the node in a server that we have started: we know when its process has ended, and can end it."""

    def __init__(self, place: ServerPlace, secret: bytes, process: ServerProcess) -> None:
        super().__init__(place.line_host, place.line_port, secret)
        self._process = process

    async def open(self, session: str) -> bytes:
        try:
            return await super().open(session)
        except DualPathError:
            if self._process.exit_code is not None:
                raise EngineGoneError(self._process.why_ended()) from None
            raise

    def end_process(self) -> None:
        print(f"{self._process.name} is silent: ending it", file=sys.stderr)
        self._process.kill()


class JoinedChannel(SocketChannel):
    """To the node in a server that somebody else has started, and starts again."""

    def end_process(self) -> None:
        """Not ours to end."""

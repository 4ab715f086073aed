"""The simulated process of scheduler and index, and clients' connections to it: real ``Cluster`` and ``Service``."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import Context

from dualpath.config import ServeConfig
from dualpath.core.errors import DualPathError
from dualpath.core.ids import NodeId
from dualpath.core.request import Request, RequestRecord, TokenEvent
from dualpath.engine.decode import DecodeEngine
from dualpath.engine.prefill import PrefillEngine
from dualpath.launch.composition import Cluster, Nodes
from dualpath.launch.remote_cluster import RemoteCluster
from dualpath.scheduler.service import Service
from dualpath.testing.hash_model import NAMESPACE
from dualpath.testing.loop import Process, VirtualLoop
from dualpath.testing.nodes import SimChannel, SimNode
from dualpath.testing.parts import (
    MAX_CONTEXT_TOKENS,
    FaultyStore,
    NodeWorks,
    Surroundings,
    node_names,
    scheduler_config,
)
from dualpath.testing.runtime import VirtualRuntime

_RESTART_S = 1.0


class ConnectionLost(Exception):
    """The server's process has ended: what a client sees then."""


class _Embedded(Cluster):
    """All engines in the scheduler's process."""

    def __init__(self, config: ServeConfig, around: Surroundings, runtime: VirtualRuntime) -> None:
        super().__init__(config, lambda _: None, runtime)
        self._around, self._virtual = around, runtime
        self._works = [NodeWorks(around, name, role, runtime) for name, role in node_names(around.scenario).items()]

    async def _start_nodes(self) -> Nodes:
        for works in self._works:
            await works.start()
        engines = [engine for works in self._works for engine in works.engines]
        return Nodes(
            [engine for engine in engines if isinstance(engine, PrefillEngine)],
            [engine for engine in engines if isinstance(engine, DecodeEngine)],
            NAMESPACE,
            FaultyStore(self._around.url, self._around.weather, self._virtual),
            "hash",
            MAX_CONTEXT_TOKENS,
            scheduler_config(self._around.scenario),
        )

    async def _close_nodes(self) -> None:
        for works in self._works:
            await works.close()


class _Remote(RemoteCluster):
    """Its own store is the faulty one, too."""

    def __init__(
        self, config: ServeConfig, around: Surroundings, nodes: Mapping[str, SimNode], runtime: VirtualRuntime
    ) -> None:
        channels = {NodeId(name): SimChannel(node, around, runtime) for name, node in nodes.items()}
        super().__init__(config, channels, lambda _: None, runtime)
        self._around, self._virtual = around, runtime

    async def _start_nodes(self) -> Nodes:
        store = FaultyStore(self._around.url, self._around.weather, self._virtual)
        return dataclasses.replace(await super()._start_nodes(), store=store)


class Front:
    """The scheduler's process over all its lives, and what clients do with it."""

    def __init__(
        self,
        around: Surroundings,
        config: ServeConfig,
        nodes: Mapping[str, SimNode],
        loop: VirtualLoop,
        log: Callable[[str], None],
    ) -> None:
        self._around, self._config, self._nodes, self._loop, self._log = around, config, nodes, loop, log
        self.num_lives = 0
        self.is_up = asyncio.Event()
        self.cluster: Cluster | None = None
        self._streams: dict[asyncio.Queue[TokenEvent | Exception], None] = {}
        self.down_at_s: list[float] = []
        self._start()

    @property
    def service(self) -> Service:
        assert self.cluster is not None
        return self.cluster.service

    # -- life ---------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.num_lives += 1
        self.process = Process(f"scheduler#{self.num_lives}")
        self.context: Context = self.process.context()
        self.starting = self._loop.create_task(self._run(), context=self.context)

    async def _run(self) -> None:
        runtime = self._runtime = VirtualRuntime(self._loop, f"{self._around.scenario.seed} {self.process.name}")
        if self._around.scenario.is_remote:
            cluster: Cluster = _Remote(self._config, self._around, self._nodes, runtime)
        else:
            cluster = _Embedded(self._config, self._around, runtime)
        try:
            await cluster.start()
        except DualPathError as error:  # whoever keeps the process alive starts it again
            self._log(f"{self.process.name} does not start: {error}")
            Context().run(self._kill)
            return
        self.cluster = cluster
        self._log(f"{self.process.name} serves")
        self.is_up.set()

    @property
    def state(self) -> str:
        if self.starting.done() and self.starting.exception() is not None:
            return f"{self.process.name} failed: {self.starting.exception()!r}"
        return f"{self.process.name} {'serves' if self.is_up.is_set() else 'is starting'}"

    def kill(self) -> None:
        if self.process.is_alive and self.is_up.is_set():
            Context().run(self._kill)

    def _kill(self) -> None:
        self._log(f"{self.process.name} killed")
        self.down_at_s.append(self._loop.now_s)
        self._loop.kill(self.process)
        self._loop.bury(self.cluster, self.starting)
        self.is_up.clear()
        if not self._around.scenario.is_remote:
            for engine_id, engine in list(self._around.engines.items()):
                self._around.fabric.kill(engine_id)
                self._loop.bury(engine)
            self._around.engines.clear()
        for stream in self._streams:
            self._loop.call_soon(_tell, stream, ConnectionLost(self.process.name))
        self._streams = {}
        self._loop.call_later(_RESTART_S, self._start)

    def stop(self, for_s: float) -> None:
        process = self.process
        if process.is_alive and not process.is_stopped:
            self._log(f"{process.name} stopped for {for_s:.3f} s")
            self._loop.stop_process(process)
            self._loop.call_later(for_s, self._loop.continue_process, process, context=Context())

    def jump_wall_clock(self, seconds: float) -> None:
        self._runtime.wall_offset_s += seconds

    async def close(self) -> None:
        """An orderly end."""
        assert self.cluster is not None
        await self._loop.create_task(self.cluster.close(5.0), context=self.context)

    # -- clients ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[asyncio.Queue[TokenEvent | Exception]]:
        """A request's connection. Its queue is short: a client that does not read holds the stream up.

        It ends with an event with a finish reason or an exception; leaving the block is what a client does that goes.
        """
        queue: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue(2)
        self._streams[queue] = None
        task = self._loop.create_task(self._serve(request, queue), context=self.context)
        try:
            yield queue
        finally:
            self._streams.pop(queue, None)
            self._loop.call_soon(task.cancel, context=self.context)

    async def _serve(self, request: Request, queue: asyncio.Queue[TokenEvent | Exception]) -> None:
        try:
            async for event in self.service.generate(request):
                await queue.put(event)
        except DualPathError as error:
            await queue.put(error)
        except Exception as error:
            await queue.put(AssertionError(f"not an error of ours: {error!r}"))

    def record(self, request: Request) -> RequestRecord | None:
        return self.service.record(request.request_id)


def _tell(queue: asyncio.Queue[TokenEvent | Exception], error: Exception) -> None:
    """Connections break with whatever is still in them."""
    while not queue.empty():
        queue.get_nowait()
    queue.put_nowait(error)

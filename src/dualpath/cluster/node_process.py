"""A node in a process of its own: loads when it is first asked, answers its scheduler, ends itself without one."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

from dualpath.config import NodeConfig, ServeConfig
from dualpath.core.errors import ConfigError
from dualpath.core.runtime import Runtime, SystemRuntime
from dualpath.protocol import wire
from dualpath.protocol.api import PROTOCOLS, DecodeEngineClient, PrefillEngineClient
from dualpath.protocol.host import EngineServer, Served, caller_of

log = logging.getLogger(__name__)
_ABANDONED = 75  # exit code


class Parts(Protocol):
    """A node's engines and what they stand on."""

    @property
    def engines(self) -> Sequence[PrefillEngineClient | DecodeEngineClient]: ...

    @property
    def lost(self) -> str | None:
        """Why an engine will never serve again in this process. Any thread."""
        ...

    async def start(self) -> None:
        """Return when the engines are ready. After an error, ``close``."""
        ...

    def report(self) -> wire.NodeReport: ...

    async def close(self) -> None: ...


BuildParts: TypeAlias = Callable[[ServeConfig, NodeConfig, Runtime, Callable[[str], None]], Awaitable[Parts]]


async def load_parts(config: ServeConfig, node: NodeConfig, runtime: Runtime, progress: Callable[[str], None]) -> Parts:
    """Those that compute. torch is imported here, in a thread: until then the node answers within milliseconds."""
    module = await runtime.to_thread(importlib.import_module, "dualpath.cluster.node_parts")
    parts: Parts = module.LoadedParts(config, node, runtime, progress)
    return parts


class NodeProcess:
    """Behind every ``Channel``. Event loop only."""

    def __init__(
        self,
        config: ServeConfig,
        node: NodeConfig,
        runtime: Runtime | None = None,
        build: BuildParts = load_parts,
    ) -> None:
        self._config, self._node = config, node
        self._runtime, self._build = runtime or SystemRuntime(), build
        self._incarnation = self._runtime.unique_id()
        self._lines: list[str] = []
        self._starting: asyncio.Task[None] | None = None
        self._parts: Parts | None = None
        self._server: EngineServer | None = None
        self.heard_at_s = self._runtime.now_s()
        self._is_closing = False

    async def open(self, session: str) -> bytes:
        """See ``Channel.open``. The first call starts the engines, as does one after a start that failed."""
        self._hear(session)
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        lines, self._lines = tuple(self._lines), []
        if not self._starting.done():
            return wire.encode(wire.Opened(self._incarnation, lines))
        error = self._starting.exception()
        if error is not None:
            self._starting = None
            return wire.encode(wire.Opened(self._incarnation, lines, wire.Failure.of(error)))
        assert self._server is not None
        assert self._parts is not None
        held = await self._server.open(session)
        others = self._server.others(session)
        return wire.encode(wire.Opened(self._incarnation, lines, None, self._parts.report(), held, others))

    async def send(self, session: str, batch: bytes) -> None:
        self._hear(session)
        assert self._server is not None
        self._server.receive(session, batch)

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        self._hear(session)
        assert self._server is not None
        return await self._server.poll(session, max_wait_s)

    def _hear(self, session: str) -> None:
        """Only the scheduler keeps a node alive: who is no gateway's any more must end, whoever still talks to it."""
        if not caller_of(session):
            self.heard_at_s = self._runtime.now_s()

    @property
    def lost(self) -> str | None:
        """Why an engine will never serve again in this process. Any thread."""
        return None if self._parts is None or self._is_closing else self._parts.lost

    @property
    def silent_s(self) -> float:
        """Since its scheduler was last heard. Any thread."""
        return self._runtime.now_s() - self.heard_at_s

    async def close(self) -> None:
        self._is_closing = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._server is not None:
            await self._server.close()
        await self._close_parts()

    async def _start(self) -> None:
        try:
            self._parts = await self._build(self._config, self._node, self._runtime, self._say)
            await self._parts.start()
        except BaseException:
            await self._close_parts()
            raise
        engines = {(info := e.info).engine_id: Served(e, PROTOCOLS[info.role]) for e in self._parts.engines}
        self._server = EngineServer(engines, self._runtime)

    async def _close_parts(self) -> None:
        if self._parts is not None:
            await self._parts.close()

    def _say(self, line: str) -> None:
        self._lines.append(f"{self._node.name}: {line}")


def watch_lease(node: NodeProcess, lease_s: float, end: Callable[[int], object] = os._exit) -> threading.Thread:
    """End this process when its scheduler has not been heard for ``lease_s``, or when its model is lost for good.

    Whoever gave this node up for dead by then may reuse the memory that it could write. A new process has a new model.
    """

    def watch() -> None:
        while node.lost is None and node.silent_s < lease_s:
            time.sleep(min(1.0, lease_s / 4))
        log.error("%s: ending", node.lost or f"nothing heard of the scheduler for {lease_s:g} s")
        end(_ABANDONED)

    thread = threading.Thread(target=watch, name="lease", daemon=True)
    thread.start()
    return thread


def check_shared_store(url: str) -> None:
    """Raises ConfigError for a store that processes cannot share."""
    if url.startswith("memory:"):
        raise ConfigError(f"[store] url: {url} is one process's memory; nodes need a store that all of them reach")

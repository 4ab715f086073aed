"""A node in a process of its own: loads when it is first asked, answers its scheduler, ends itself without one."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from dualpath.config import NodeConfig, ServeConfig
from dualpath.core.errors import ConfigError
from dualpath.core.runtime import SystemRuntime
from dualpath.engine.remote import wire
from dualpath.engine.remote.host import EngineServer
from dualpath.engine.trace import ChromeTrace
from dualpath.scheduler.systems import system_policy

if TYPE_CHECKING:  # torch is imported when the engines are asked for: until then the node answers within milliseconds
    from dualpath.launch.foundation import Foundation
    from dualpath.launch.node_host import NodeHost

log = logging.getLogger(__name__)
_ABANDONED = 75  # exit code


class NodeProcess:
    """Behind every ``Channel``. Event loop only."""

    def __init__(self, config: ServeConfig, node: NodeConfig) -> None:
        self._config, self._node = config, node
        self._incarnation = uuid.uuid4().hex
        self._lines: list[str] = []
        self._starting: asyncio.Task[None] | None = None
        self._foundation: Foundation | None = None
        self._host: NodeHost | None = None
        self._server: EngineServer | None = None
        self._trace = ChromeTrace() if config.observe.trace_out else None
        self.heard_at_s = time.monotonic()
        self._is_closing = False

    async def open(self, session: str) -> bytes:
        """See ``Channel.open``. The first call starts the engines, as does one after a start that failed."""
        self.heard_at_s = time.monotonic()
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
        held = await self._server.open(session)
        return wire.encode(wire.Opened(self._incarnation, lines, None, self._report(), held))

    async def send(self, session: str, batch: bytes) -> None:
        self.heard_at_s = time.monotonic()
        assert self._server is not None
        self._server.receive(session, batch)

    async def poll(self, session: str, max_wait_s: float) -> bytes:
        self.heard_at_s = time.monotonic()
        assert self._server is not None
        return await self._server.poll(session, max_wait_s)

    @property
    def lost(self) -> str | None:
        """Why an engine will never serve again in this process. Any thread."""
        return None if self._host is None or self._is_closing else self._host.lost

    async def close(self) -> None:
        self._is_closing = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._server is not None:
            await self._server.close()
        await self._close_engines()
        if self._trace is not None and self._config.observe.trace_out is not None:
            out = self._config.observe.trace_out
            self._trace.write(out.with_name(f"{out.stem}-{self._node.name}{out.suffix}"))

    async def _start(self) -> None:
        config, runtime = self._config, SystemRuntime()
        await runtime.to_thread(_import_engines)
        from dualpath.launch.foundation import Foundation
        from dualpath.launch.node_host import NodeHost
        from dualpath.launch.places import node_plan

        plan = node_plan(self._node, config.cluster, config.model.device)
        system = system_policy(config.cluster.system, config.cluster.path)
        self._foundation = Foundation(config, [plan], system, runtime, self._say, self._trace)
        self._host = NodeHost(plan, self._foundation, runtime, self._say)
        try:
            await self._foundation.load()
            await self._host.start()
        except BaseException:
            await self._close_engines()
            raise
        self._server = EngineServer({engine.info.engine_id: engine for engine in self._host.engines})

    async def _close_engines(self) -> None:
        if self._host is not None:
            await self._host.close()
        if self._foundation is not None:
            self._foundation.close()

    def _report(self) -> wire.NodeReport:
        base, host = self._foundation, self._host
        assert base is not None
        assert host is not None
        return wire.NodeReport(
            base.namespace,
            base.model_name,
            base.sizes.max_context_tokens,
            tuple(engine.info for engine in host.engines),
            wire.encode(base.limits.scheduler),
            socket.gethostname(),
            os.getpid(),
        )

    def _say(self, line: str) -> None:
        self._lines.append(f"{self._node.name}: {line}")


def _import_engines() -> None:
    """Seconds of work, in a thread."""
    importlib.import_module("dualpath.launch.node_host")


def watch_lease(node: NodeProcess, lease_s: float, end: Callable[[int], object] = os._exit) -> threading.Thread:
    """End this process when its scheduler has not been heard for ``lease_s``, or when its model is lost for good.

    Whoever gave this node up for dead by then may reuse the memory that it could write. A new process has a new model.
    """

    def watch() -> None:
        while node.lost is None and time.monotonic() - node.heard_at_s < lease_s:
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

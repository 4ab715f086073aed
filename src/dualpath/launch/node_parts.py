"""What a node's process is made of when it computes: weights and store, engines, a trace of what they did."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence

from dualpath.config import NodeConfig, ServeConfig
from dualpath.core.runtime import Runtime
from dualpath.engine.decode import DecodeEngine
from dualpath.engine.prefill import PrefillEngine
from dualpath.engine.remote import wire
from dualpath.engine.trace import ChromeTrace
from dualpath.launch.foundation import Foundation
from dualpath.launch.node_host import NodeHost
from dualpath.launch.places import node_plan
from dualpath.launch.ucx_network import open_devices_warning
from dualpath.scheduler.systems import system_policy


class LoadedParts:
    """``launch.node_process.Parts`` with a model of its own."""

    def __init__(
        self, config: ServeConfig, node: NodeConfig, runtime: Runtime, progress: Callable[[str], None]
    ) -> None:
        plan = node_plan(node, config.cluster, config.model.device)
        system = system_policy(config.cluster.system, config.cluster.path)
        self._trace_out = config.observe.trace_out
        self._trace = ChromeTrace() if self._trace_out else None
        self._name, self._progress = node.name, progress
        self._foundation = Foundation(config, [plan], system, runtime, progress, self._trace)
        self._host = NodeHost(plan, self._foundation, runtime, progress)

    @property
    def engines(self) -> Sequence[PrefillEngine | DecodeEngine]:
        return self._host.engines

    @property
    def lost(self) -> str | None:
        return self._host.lost

    async def start(self) -> None:
        if warning := open_devices_warning(os.environ):
            self._progress(warning)
        await self._foundation.load()
        await self._host.start()

    def report(self) -> wire.NodeReport:
        base = self._foundation
        return wire.NodeReport(
            base.namespace,
            base.model_name,
            base.sizes.max_context_tokens,
            tuple(engine.info for engine in self._host.engines),
            wire.encode(base.limits.scheduler),
            socket.gethostname(),
            os.getpid(),
        )

    async def close(self) -> None:
        await self._host.close()
        self._foundation.close()
        if self._trace is not None and self._trace_out is not None:
            self._trace.write(self._trace_out.with_name(f"{self._trace_out.stem}-{self._name}{self._trace_out.suffix}"))

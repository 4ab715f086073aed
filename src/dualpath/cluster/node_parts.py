"""What a node's process is made of when it computes: weights and store, engines, a trace of what they did."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence

from dualpath.cluster.foundation import Foundation
from dualpath.cluster.node_host import NodeHost
from dualpath.cluster.otel import OtelSink, install_sink, remove_sink
from dualpath.cluster.places import node_plan
from dualpath.cluster.setup import keep_loaded
from dualpath.cluster.ucx_network import open_devices_warning
from dualpath.config import NodeConfig, ServeConfig
from dualpath.core.runtime import Runtime
from dualpath.engine.decode import DecodeEngine
from dualpath.engine.prefill import PrefillEngine
from dualpath.engine.trace import ChromeTrace
from dualpath.protocol import wire
from dualpath.scheduler.policy.systems import system_policy


class LoadedParts:
    """``cluster.node_process.Parts`` with a model of its own."""

    def __init__(
        self, config: ServeConfig, node: NodeConfig, runtime: Runtime, progress: Callable[[str], None]
    ) -> None:
        plan = node_plan(node, config)
        system = system_policy(config.cluster.system, config.cluster.path)
        self._observe, self._trace_out = config.observe, config.observe.trace_out
        self._spans: OtelSink | None = None
        self._trace = ChromeTrace() if self._trace_out else None
        self._name, self._progress, self._runtime = node.name, progress, runtime
        self._foundation = Foundation(config, [plan], system, runtime, progress, self._trace)
        self._host = NodeHost(plan, self._foundation, runtime, progress)

    @property
    def engines(self) -> Sequence[PrefillEngine | DecodeEngine]:
        return self._host.engines

    @property
    def lost(self) -> str | None:
        return self._host.lost

    async def start(self) -> None:
        self._spans = install_sink(self._observe, self._name)
        if warning := open_devices_warning(os.environ):
            self._progress(warning)
        await self._foundation.load()
        await self._host.start()
        keep_loaded()

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
        await self._runtime.to_thread(remove_sink, self._spans)
        if self._trace is not None and self._trace_out is not None:
            self._trace.write(self._trace_out.with_name(f"{self._trace_out.stem}-{self._name}{self._trace_out.suffix}"))

"""A whole cluster in one process: engines of all nodes, store, scheduler; real transfers, emulated storage NICs."""

from __future__ import annotations

import logging
import os

from dualpath.cluster.composition import Nodes, ServingCluster
from dualpath.cluster.foundation import Foundation
from dualpath.cluster.node_host import NodeHost
from dualpath.cluster.places import Progress, embedded_plans
from dualpath.cluster.ucx_network import open_devices_warning
from dualpath.config import ServeConfig
from dualpath.core.errors import ConfigError
from dualpath.core.stats import NodeStats
from dualpath.engine.decode import DecodeEngine
from dualpath.engine.prefill import PrefillEngine
from dualpath.engine.trace import ChromeTrace

log = logging.getLogger(__name__)


class EmbeddedCluster(ServingCluster):
    """All nodes in this process; the engines of a device share one set of weights."""

    def __init__(self, config: ServeConfig, progress: Progress = log.info) -> None:
        if config.cluster.engine != "builtin":
            raise ConfigError(f"--engine {config.cluster.engine}: here engines of ours compute, in one process")
        super().__init__(config, progress)
        self.trace = ChromeTrace() if config.observe.trace_out else None
        self._foundation: Foundation | None = None
        self._hosts: list[NodeHost] = []

    @property
    def prefill_engines(self) -> list[PrefillEngine]:
        return [engine for host in self._hosts for engine in host.prefill_engines]

    @property
    def decode_engines(self) -> list[DecodeEngine]:
        return [engine for host in self._hosts for engine in host.decode_engines]

    async def _start_nodes(self) -> Nodes:
        plans = embedded_plans(self._config.cluster, self._config.model.device)
        base = Foundation(
            self._config, plans, self.system, self._runtime, self._progress, self.trace, in_one_process=True
        )
        self._foundation = base
        await base.load()
        is_nixl = self._config.cluster.transport == "nixl"
        if is_nixl and not base.builder().ucx and (warning := open_devices_warning(os.environ)):
            self._progress(warning)
        for plan in plans:
            host = NodeHost(plan, base, self._runtime, self._progress)
            self._hosts.append(host)
            await host.start()
        return Nodes(
            self.prefill_engines,
            self.decode_engines,
            base.namespace,
            base.store,
            base.model_name,
            base.sizes.max_context_tokens,
            base.limits.scheduler,
        )

    async def _close_nodes(self) -> None:
        for host in self._hosts:
            await host.close()
        self._hosts = []
        if self._foundation is not None:
            self._foundation.close()
            self._foundation = None
        if self.trace is not None and self._config.observe.trace_out is not None:
            self.trace.write(self._config.observe.trace_out)

    def _describe_nodes(self) -> tuple[NodeStats, ...]:
        return tuple(
            NodeStats(
                host.plan.node_id,
                host.plan.role,
                tuple(place.engine_id for place in host.plan.places),
                storage_nic_bytes_per_s=host.plan.emulated_nic_bytes_per_s,
            )
            for host in self._hosts
        )

"""Builds an engine with its traffic manager: the one place that chooses transport, sizes and deadlines for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dualpath.cluster.places import Place
from dualpath.cluster.sizes import NUM_WRITE_SLOTS, Sizes
from dualpath.cluster.ucx_network import within_process
from dualpath.config import ServeConfig
from dualpath.core.ids import PeerId, peer_id
from dualpath.core.keys import Namespace
from dualpath.core.plan import Role
from dualpath.core.runtime import Runtime
from dualpath.engine.batch import Quota
from dualpath.engine.decode import DecodeConfig, DecodeEngine
from dualpath.engine.prefill import PrefillConfig, PrefillEngine
from dualpath.engine.trace import ChromeTrace
from dualpath.grammar.state import Grammars
from dualpath.models.seam import Model, WeightUpdates
from dualpath.scheduler.policy.systems import SystemPolicy
from dualpath.store.contract import BlockStore
from dualpath.traffic.contract import Transport
from dualpath.traffic.local_transport import LocalNetwork
from dualpath.traffic.manager import TrafficManager
from dualpath.traffic.still import StillTrafficManager
from dualpath.traffic.storage_nic import StorageNic


@dataclass(frozen=True, slots=True)
class EngineBuilder:
    """What all engines of a process have in common."""

    config: ServeConfig
    sizes: Sizes
    namespace: Namespace
    store: BlockStore
    runtime: Runtime
    trace: ChromeTrace | None
    system: SystemPolicy
    quota: Quota
    grammars: Grammars | None = None
    updates: WeightUpdates | None = None
    in_one_process: bool = False  # the whole cluster: nobody outside needs to reach its engines
    network: LocalNetwork | None = None  # that connects them, with [cluster] transport = "local"

    def prefill(self, place: Place, model: Model, nic: StorageNic) -> PrefillEngine:
        deadlines = self.config.deadlines
        return PrefillEngine(
            engine_id=place.engine_id,
            node_id=place.node_id,
            model=model,
            geometry=self.namespace.geometry,
            namespace=self.namespace,
            traffic=self._traffic(place, nic),
            config=PrefillConfig(
                workspace_tokens=self.sizes.workspace_tokens,
                verifies=self.verifies,
                streams_layers=self.system.streams_layers,
                max_batch_tokens=self.config.memory.prefill_batch_tokens,
                slot_deadline_s=deadlines.slot_s,
                transfer_deadline_s=deadlines.transfer_s,
            ),
            runtime=self.runtime,
            quota=self.quota,
            trace=self.trace,
            grammars=self.grammars,
            updates=self.updates,
        )

    def decode(self, place: Place, model: Model, nic: StorageNic) -> DecodeEngine:
        return DecodeEngine(
            engine_id=place.engine_id,
            node_id=place.node_id,
            model=model,
            geometry=self.namespace.geometry,
            namespace=self.namespace,
            traffic=self._traffic(place, nic),
            config=DecodeConfig(
                self.sizes.decode_kv_tokens,
                verifies=self.verifies,
                slot_deadline_s=self.config.deadlines.slot_s,
                graph_context_tokens=self.sizes.max_context_tokens if self.config.model.cuda_graphs else None,
            ),
            runtime=self.runtime,
            trace=self.trace,
            grammars=self.grammars,
            updates=self.updates,
        )

    @property
    def verifies(self) -> bool:
        """End to end wherever a CPU touches the bytes anyway, unless told otherwise."""
        verify = self.config.memory.verify
        computes_on_cpus = self.namespace.numerics == "cpu"
        return not self.system.skips_io and (verify == "all" or (verify == "auto" and computes_on_cpus))

    @property
    def ucx(self) -> dict[str, str]:
        """Parameters that close UCX to the outside; none where it must be, or the user wants it, open."""
        if not self.in_one_process or self.config.memory.copies == "nic":
            return {}
        return within_process(os.environ, on_cuda=self.namespace.numerics != "cpu")

    def _transport(self, name: PeerId) -> Transport:
        if self.config.cluster.transport == "local":
            assert self.network is not None
            return self.network.transport(name)
        from dualpath.traffic.nixl_transport import NixlTransport  # NIXL only where it is used

        return NixlTransport(name, ucx=self.ucx)

    def _traffic(self, place: Place, nic: StorageNic) -> TrafficManager:
        is_prefill, deadlines = place.role is Role.PREFILL, self.config.deadlines
        transport = self._transport(peer_id(place.engine_id, self.runtime.unique_id()[:8]))
        kind = StillTrafficManager if self.system.skips_io else TrafficManager
        traffic = kind(
            engine_id=place.engine_id,
            node_id=place.node_id,
            role=place.role,
            geometry=self.namespace.geometry,
            namespace_digest=self.namespace.digest,
            num_slots=self.sizes.prefill_slots if is_prefill else self.sizes.decode_slots,
            num_write_slots=0 if is_prefill else NUM_WRITE_SLOTS,
            transport=transport,
            open_io=lambda _: self.store.open_io(transport.agent, self.runtime),
            storage_nic=nic,
            runtime=self.runtime,
            copies_by_nic=self.config.memory.copies == "nic",
            storage_deadline_s=deadlines.storage_read_s,
            transfer_deadline_s=deadlines.transfer_s,
        )
        trace = self.trace
        if trace is not None:

            def span(name: str, start_s: float, end_s: float, args: Mapping[str, Any]) -> None:
                trace.span(place.engine_id, name, name, start_s, end_s, dict(args))

            traffic.trace = span
        return traffic

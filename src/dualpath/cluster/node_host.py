"""One node: its engines and the storage NIC they share, be it in our process or in one of its own."""

from __future__ import annotations

from dualpath.cluster.foundation import Foundation
from dualpath.cluster.places import NodePlan, Progress
from dualpath.core.plan import Role
from dualpath.core.runtime import Clock
from dualpath.engine.decode import DecodeEngine
from dualpath.engine.prefill import PrefillEngine
from dualpath.traffic.storage_nic import StorageNic


class NodeHost:
    """Event loop only. ``start`` when the foundation is loaded, ``close`` before it is."""

    def __init__(self, plan: NodePlan, foundation: Foundation, clock: Clock, progress: Progress) -> None:
        self.plan = plan
        self._foundation, self._progress = foundation, progress
        self.nic = StorageNic(plan.emulated_nic_bytes_per_s, clock)
        self.prefill_engines: list[PrefillEngine] = []
        self.decode_engines: list[DecodeEngine] = []

    @property
    def engines(self) -> list[PrefillEngine | DecodeEngine]:
        return [*self.prefill_engines, *self.decode_engines]

    @property
    def lost(self) -> str | None:
        """Why an engine will never serve again in this process."""
        return next((engine.lost for engine in self.prefill_engines if engine.lost is not None), None)

    async def start(self) -> None:
        """Allocate memory and start threads, engine by engine. After an error, ``close``."""
        builder = self._foundation.builder()
        for place in self.plan.places:
            model = self._foundation.model(place)
            engine: PrefillEngine | DecodeEngine
            if place.role is Role.PREFILL:
                engine = builder.prefill(place, model, self.nic)
                self.prefill_engines.append(engine)
            else:
                engine = builder.decode(place, model, self.nic)
                self.decode_engines.append(engine)
            await engine.start()
            self._progress(f"{place.engine_id} ready on {place.device}")

    async def close(self) -> None:
        for engine in self.engines:
            await engine.close()
        self.prefill_engines, self.decode_engines = [], []

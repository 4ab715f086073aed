"""An engine's registered memory: who holds slots while transfers may touch them, and reads that are verified."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey
from dualpath.core.runtime import Clock
from dualpath.store.header import HEADER_BYTES, verify, write_header
from dualpath.traffic.contract import Region, Units
from dualpath.traffic.jobs import Hold, StorageJob
from dualpath.traffic.slots import SlotPool
from dualpath.traffic.staging import DEVICE, PAGES, Staging, page_region


class EngineMemory:
    """The staging buffer with its two pools of slots, and the device region. Any thread."""

    def __init__(
        self, geometry: KvGeometry, namespace_digest: bytes, num_slots: int, num_write_slots: int, clock: Clock
    ) -> None:
        self._geometry, self._digest = geometry, namespace_digest
        self.slots = SlotPool(num_slots, clock)
        # Who waits for a write slot keeps device memory: when storage hangs, better no write than no answer.
        self.write_slots = SlotPool(num_write_slots, clock, first_slot=num_slots, waits_for_lingering=False)
        self.staging = Staging(geometry, num_slots + num_write_slots)
        own = (self.staging.region, self.staging.headers)
        self.regions: dict[str, Region] = {region.name: region for region in own}

    @property
    def cuda_device(self) -> torch.device | None:
        """The device of the device region, unless that is host memory."""
        region = self.regions.get(DEVICE)
        return region.storage.device if region is not None and region.storage.is_cuda else None

    def add(self, region: Region) -> None:
        """Raises ValueError where units are not whole steps apart: digests find them by their number in memory."""
        if ((region.addresses - region.storage.data_ptr()) % region.unit_bytes).any():
            raise ValueError(f"region {region.name!r} has gaps that are not whole units of {region.unit_bytes} bytes")
        self.regions[region.name] = region

    def add_pages(self, num_pages: int) -> Region:
        region = self.regions[PAGES] = page_region(num_pages)
        return region

    def page(self, number: int) -> memoryview:
        start = number * HEADER_BYTES
        return memoryview(self.regions[PAGES].storage.numpy().data)[start : start + HEADER_BYTES]

    def select(self, region_name: str, units: Units, num_others: int) -> tuple[Region, Units]:
        """The region and its checked units, int32. Raises ValueError where they do not fit it or the other side."""
        region, units = self.regions[region_name], np.ascontiguousarray(units, dtype=np.int32)
        if len(units) != num_others:
            raise ValueError(f"{len(units)} units on one side, {num_others} on the other")
        if len(units) and not (int(units.min()) >= 0 and int(units.max()) < region.num_units):
            raise ValueError(f"units outside of region {region_name!r} with {region.num_units} units")
        return region, units

    def hold_units(self, *places: tuple[Region, Units]) -> list[Hold]:
        """Hold the staging slots among these units; device units have none."""
        staged = [units for region, units in places if region is self.staging.region]
        return self.hold_slots([slot for units in staged for slot in self.staging.slots_of(units)])

    def hold_slots(self, slots: Sequence[int]) -> list[Hold]:
        """Hold all of these slots, or raise ValueError and hold none."""
        holds = self._by_pool(slots)
        for index, (pool, mine) in enumerate(holds):
            try:
                pool.hold(mine)
            except ValueError:
                for held, held_slots in holds[:index]:
                    held.unhold(held_slots)
                raise
        return holds

    def read_job(self, key: BlockKey, slot: int, deadline_s: float, namespace_digest: bytes = b"") -> StorageJob:
        """Storage to slot, then verified. The slot is held already, for this job to let go of."""
        view, digest = self.staging.object_view(slot), namespace_digest or self._digest
        job = self._storage_job(key, slot, deadline_s, digest)
        job.after = lambda: verify(view, digest, key, self._geometry)
        return job

    def write_job(
        self,
        key: BlockKey,
        parent: BlockKey,
        slot: int,
        deadline_s: float,
        *,
        has_header: bool,
        namespace_digest: bytes = b"",
    ) -> StorageJob:
        """Slot to storage. The slot is held already. Its header is made first, or is what the payload must fit."""
        view, digest = self.staging.object_view(slot), namespace_digest or self._digest
        job = self._storage_job(key, slot, deadline_s, digest)
        if has_header:
            job.before = lambda: verify(view, digest, key, self._geometry, parent)
        else:
            job.before = lambda: write_header(view, digest, key, parent, self._geometry)
        return job

    def _storage_job(self, key: BlockKey, slot: int, deadline_s: float, namespace_digest: bytes) -> StorageJob:
        return StorageJob(
            num_bytes=self.staging.object_bytes,
            deadline_s=deadline_s,
            holds=self._by_pool([slot]),
            request=self.staging.request(key, slot, namespace_digest),
        )

    def _by_pool(self, slots: Sequence[int]) -> list[Hold]:
        prompt, write = [s for s in slots if s in self.slots], [s for s in slots if s not in self.slots]
        return [(pool, mine) for pool, mine in ((self.slots, prompt), (self.write_slots, write)) if mine]

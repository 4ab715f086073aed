"""A memory region as NIXL's descriptors, and as what a peer is told about it: runs of neighbouring units."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from dualpath.traffic.contract import Region


class RegionTable(msgspec.Struct, array_like=True, frozen=True):
    """A region's units as runs of neighbours: int64 [n, 2] of (address, units)."""

    name: str
    memory_type: str
    device_id: int
    unit_bytes: int
    runs: bytes

    @classmethod
    def of(cls, region: Region) -> RegionTable:
        device = region.storage.device
        memory_type, device_id = ("VRAM", device.index or 0) if region.storage.is_cuda else ("DRAM", 0)
        runs = _find_runs(region.addresses, region.unit_bytes)
        return cls(region.name, memory_type, device_id, region.unit_bytes, runs.tobytes())

    @property
    def num_units(self) -> int:
        return int(self._runs()[:, 1].sum())

    def rows(self) -> npt.NDArray[np.uint64]:
        """NIXL's strided descriptors: address, bytes, device, stride, count."""
        runs = self._runs()
        rows = np.empty((len(runs), 5), dtype=np.uint64)
        rows[:, 0], rows[:, 4] = runs[:, 0], runs[:, 1]
        rows[:, 1] = rows[:, 3] = self.unit_bytes
        rows[:, 2] = self.device_id
        return rows

    def _runs(self) -> npt.NDArray[np.int64]:
        return np.frombuffer(self.runs, dtype=np.int64).reshape(-1, 2)


def _find_runs(addresses: npt.NDArray[np.int64], unit_bytes: int) -> npt.NDArray[np.int64]:
    """Units that follow each other without a gap, as rows of (address of the first, number of units)."""
    starts = np.flatnonzero(np.concatenate([[True], np.diff(addresses) != unit_bytes]))
    return np.stack([addresses[starts], np.diff(np.append(starts, len(addresses)))], axis=1)

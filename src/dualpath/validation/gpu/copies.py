"""Step 6: how fast KV comes to the device: pinned and pageable, block by block and by 2D copies, beside compute."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from dualpath.core.geometry import KvGeometry
from dualpath.traffic.copier import RegionCopies, find_runs
from dualpath.traffic.cuda_copies import find_grids, pin, unpin
from dualpath.traffic.staging import Staging, device_region
from dualpath.validation.gpu.result import Findings
from dualpath.validation.gpu.setting import Setting

UNIT_BYTES = (262144, 73728)  # a Layer Block of an 8B model, and one of DeepSeek-V3
_LAYERS = 4


def run(setting: Setting, found: Findings) -> None:
    num_bytes, device = setting.scale.copy_bytes, setting.device
    table = found.table("Host to device", "what", "GB/s", "of pinned", "calls")
    pinned = torch.ones(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    pageable = torch.ones(num_bytes, dtype=torch.uint8)
    target = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    best = num_bytes / setting.time_s(lambda: target.copy_(pinned, non_blocking=True))
    setting.rates.to_device = max(best, setting.rates.to_device)
    table.rows.append(["pinned, in one piece", _gb(best), "100%", 1])
    rate = num_bytes / setting.time_s(lambda: target.copy_(pageable))
    table.rows.append(["pageable, in one piece", _gb(rate), f"{rate / best:.0%}", 1])
    for unit_bytes in UNIT_BYTES:
        _layer(setting, found, table.rows, unit_bytes, best)


def _layer(setting: Setting, found: Findings, rows: list[list[object]], unit_bytes: int, best: float) -> None:
    """One layer of evenly spaced slots, as layer streaming loads it."""
    geometry = KvGeometry(_LAYERS, 64, unit_bytes // 64)
    num_slots = max(2, setting.scale.copy_bytes // geometry.full_block_bytes)
    staging, device = Staging(geometry, num_slots), setting.device
    region = device_region(torch.zeros((num_slots, unit_bytes), dtype=torch.uint8, device=device), unit_bytes)
    units, local = staging.units(range(num_slots), 1), np.arange(num_slots, dtype=np.int32)
    runs = list(find_runs(staging.region.addresses[units], region.addresses[local], unit_bytes))
    calls = len(list(find_grids(runs))) if device.type == "cuda" else len(runs)
    copies, num_bytes = RegionCopies(), num_slots * unit_bytes
    if device.type == "cuda":
        pin(staging.region.storage, device)
    try:
        by_grid: Callable[[], object] = lambda: copies.copy(staging.region, units, region, local)  # noqa: E731
        rate = num_bytes / setting.time_s(by_grid)
        rows.append([f"{num_slots} Layer Blocks of {unit_bytes >> 10} KiB", _gb(rate), f"{rate / best:.0%}", calls])
        one_by_one = num_bytes / setting.time_s(lambda: _one_by_one(staging, units, region.storage, unit_bytes))
        rows.append(["the same, a call for each", _gb(one_by_one), f"{one_by_one / best:.0%}", len(runs)])
        with _busy(device) as keep_busy:
            keep_busy()
            busy = num_bytes / setting.time_s(by_grid, 1)
        rows.append(["the same beside compute", _gb(busy), f"{busy / best:.0%}", calls])
        passed = rate >= 0.8 * best if device.type == "cuda" else None
        found.verdict(f"Layer Blocks of {unit_bytes >> 10} KiB come at the link's rate", f"{rate / best:.0%}", passed)
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            unpin(staging.region.storage, device)


def _one_by_one(staging: Staging, units: np.ndarray, target: torch.Tensor, unit_bytes: int) -> None:
    starts = staging.region.addresses[units] - staging.region.storage.data_ptr()
    for number, start in enumerate(starts.tolist()):
        source = staging.region.storage[start : start + unit_bytes]
        target[number * unit_bytes : (number + 1) * unit_bytes].copy_(source, non_blocking=True)


class _busy:
    """Some 50 ms of multiplications on the device's current stream."""

    def __init__(self, device: torch.device) -> None:
        size = 4096 if device.type == "cuda" else 64
        self._matrix = torch.ones((size, size), device=device)
        self._times = 40 if device.type == "cuda" else 1

    def __enter__(self) -> Callable[[], None]:
        return self._work

    def __exit__(self, *_: object) -> None:
        self._matrix = self._matrix.new_empty(0)

    def _work(self) -> None:
        for _ in range(self._times):
            torch.mm(self._matrix, self._matrix)


def _gb(rate: float) -> str:
    return f"{rate / 1e9:.2f}"

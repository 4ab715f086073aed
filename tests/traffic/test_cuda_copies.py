"""Copies to a device in few calls: by a stand-in for CUDA's runtime, which refuses what that refuses."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.traffic.rig import PREFILL, PREFILL_PEER, make_engine, make_store

from dualpath.core.errors import TransferError
from dualpath.core.geometry import KvGeometry
from dualpath.core.plan import Role
from dualpath.traffic import cuda_copies
from dualpath.traffic.copier import find_runs
from dualpath.traffic.cuda_copies import Grid, copy_grids, find_grids, pin
from dualpath.traffic.fake_transport import FakeFabric
from dualpath.traffic.memory import EngineMemory
from dualpath.traffic.staging import Staging, device_region

GEOMETRY = KvGeometry(num_layers=3, block_tokens=4, bytes_per_token_layer=16)
UNIT_BYTES = 64


class FakeCudart:
    """``cudaMemcpy2DAsync`` and ``cudaMemcpyAsync`` between host addresses."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def cudaMemcpyAsync(self, target: int, source: int, width: int, kind: int, stream: int) -> int:
        return self.cudaMemcpy2DAsync(target, width, source, width, width, 1, kind, stream, name="1D")

    def cudaMemcpy2DAsync(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int, kind: int,
        stream: int, name: str = "2D",
    ) -> int:  # fmt: skip
        self.calls.append(name)
        if kind != 4 or not 0 < width <= min(target_pitch, source_pitch) or max(target_pitch, source_pitch) >= 2**31:
            return 12  # cudaErrorInvalidPitchValue
        for row in range(height):
            ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)
        return 0


def _copy(slots: list[int], layer: int, blocks: list[int]) -> FakeCudart:
    """One layer of these slots to these blocks of a workspace; checks that exactly these bytes have moved."""
    staging = Staging(GEOMETRY, 9)
    source = staging.region.storage
    source.copy_(torch.randint(0, 256, source.shape, dtype=torch.uint8))
    target = torch.zeros((12, UNIT_BYTES), dtype=torch.uint8)
    region = device_region(target, UNIT_BYTES)
    units, local = staging.units(slots, layer), np.array(blocks, dtype=np.int32)
    runs = find_runs(staging.region.addresses[units], region.addresses[local], UNIT_BYTES)
    cuda = FakeCudart()
    copy_grids(find_grids(runs), 7, cuda)
    expected = torch.zeros_like(target)
    for unit, block in zip(units.tolist(), blocks, strict=True):
        start = int(staging.region.addresses[unit]) - source.data_ptr()
        expected[block] = source[start : start + UNIT_BYTES]
    assert torch.equal(target, expected)
    return cuda


def test_one_layer_of_consecutive_slots_is_one_copy() -> None:
    assert _copy([2, 3, 4, 5, 6], 1, [0, 1, 2, 3, 4]).calls == ["2D"]


@pytest.mark.parametrize("seed", range(20))
def test_any_slots_come_to_any_blocks(seed: int) -> None:
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 9))
    _copy(draw.permutation(9)[:count].tolist(), int(draw.integers(0, 3)), draw.permutation(12)[:count].tolist())


def test_steps_downwards_and_overlaps_are_copies_of_their_own() -> None:
    grids = list(find_grids([(1000, 0, 10), (900, 20, 10), (905, 40, 10)]))
    assert [grid.height for grid in grids] == [1, 1, 1]
    assert list(find_grids([(0, 0, 4), (8, 4, 4), (16, 8, 4), (25, 12, 4)])) == [
        Grid(0, 0, 4, 8, 4, 3),
        Grid(25, 12, 4, 4, 4, 1),
    ]


def test_what_cuda_refuses_is_a_failed_transfer() -> None:
    with pytest.raises(TransferError, match="error 12"):
        copy_grids([Grid(0, 0, 8, 4, 8, 2)], 7, FakeCudart())


def test_without_cuda_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_copies.runtime_library.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", "99.1")
    monkeypatch.setattr(ctypes, "CDLL", _no_library)
    with pytest.raises(TransferError, match=r"libcudart\.so\.99"):
        cuda_copies.runtime_library()


def _no_library(name: str) -> Any:
    raise OSError(name)


def test_staging_is_pinned_for_every_device_from_the_engines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[Any] = []
    registered: list[Any] = []

    class Device:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            entered.append(self.device)

        def __exit__(self, *_: object) -> None:
            entered.append(None)

    class Cudart:
        def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
            registered.append((num_bytes, flags, entered[-1]))
            return 0

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "cudart", Cudart)
    pin(torch.zeros(64, dtype=torch.uint8), torch.device("cuda", 3))
    assert registered == [(64, 1, torch.device("cuda", 3))]


def test_the_fake_transport_has_no_way_to_device_memory() -> None:
    transport = FakeFabric().transport("decode0.1")  # type: ignore[arg-type]
    region = device_region(torch.zeros((2, 8), dtype=torch.uint8), 8)
    on_device = type(region)("device", torch.empty(16, dtype=torch.uint8, device="meta"), 8, region.addresses)
    with pytest.raises(TransferError, match="on meta"):
        transport.register(on_device)


def test_the_traffic_thread_takes_the_engines_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """UCX registers and copies device memory by the context of the thread that it is on."""
    taken: list[tuple[Any, str]] = []
    device = torch.device("cuda", 2)
    monkeypatch.setattr(EngineMemory, "cuda_device", device)
    monkeypatch.setattr("dualpath.traffic.manager.unpin", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda d: taken.append((d, threading.current_thread().name)))
    fabric = FakeFabric()
    engine = make_engine(PREFILL, Role.PREFILL, fabric.transport(PREFILL_PEER), make_store("memory", tmp_path))
    engine.manager.close()
    ((found, thread),) = taken
    assert found == device
    assert thread != threading.current_thread().name

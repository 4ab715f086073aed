"""Copies between host and device in few calls: runs of one size at equal steps on both sides are one 2D copy.

One layer of many staging slots is such a pattern, since slots are evenly spaced: by one call for each Layer Block the
calls would cost more than the copies. torch has no 2D copy between pinned memory and a device, so CUDA's own is called,
in the library that torch has loaded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch

from dualpath.core.errors import TransferError

Run = tuple[int, int, int]  # source address, destination address, bytes
MAX_PITCH = 2**31 - 1
_BY_ADDRESS = 4  # cudaMemcpyDefault: host or device, as the addresses say
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device's context


class Grid(NamedTuple):
    """``height`` runs of ``width`` bytes."""

    source: int
    target: int
    width: int
    source_pitch: int
    target_pitch: int
    height: int


def find_grids(runs: Iterable[Run]) -> Iterator[Grid]:
    """Runs that follow each other at equal steps, in their order. Steps are upwards and leave no overlap."""
    grid: Grid | None = None
    for source, target, num_bytes in runs:
        if grid is not None and num_bytes == grid.width:
            steps = source - grid.source, target - grid.target
            if grid.height == 1 and all(num_bytes <= step <= MAX_PITCH for step in steps):
                grid = grid._replace(source_pitch=steps[0], target_pitch=steps[1], height=2)
                continue
            if grid.height > 1 and steps == (grid.source_pitch * grid.height, grid.target_pitch * grid.height):
                grid = grid._replace(height=grid.height + 1)
                continue
        if grid is not None:
            yield grid
        grid = Grid(source, target, num_bytes, num_bytes, num_bytes, 1)
    if grid is not None:
        yield grid


@cache
def runtime_library() -> Any:
    """CUDA's runtime. Raises TransferError where torch has none."""
    major = (torch.version.cuda or "").partition(".")[0]
    for name in (f"libcudart.so.{major}", "libcudart.so"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        size, pointer = ctypes.c_size_t, ctypes.c_void_p
        library.cudaMemcpy2DAsync.argtypes = [pointer, size, pointer, size, size, size, ctypes.c_int, pointer]
        library.cudaMemcpyAsync.argtypes = [pointer, pointer, size, ctypes.c_int, pointer]
        return library
    raise TransferError(f"CUDA's runtime library is not to be found: libcudart.so.{major}")


def copy_grids(grids: Iterable[Grid], stream: int, library: Any = None) -> int:
    """Queue these copies on a stream; how many calls that took. Raises TransferError."""
    cuda, calls = library or runtime_library(), 0
    for grid in grids:
        if grid.height == 1:
            result = cuda.cudaMemcpyAsync(grid.target, grid.source, grid.width, _BY_ADDRESS, stream)
        else:
            result = cuda.cudaMemcpy2DAsync(
                grid.target, grid.target_pitch, grid.source, grid.source_pitch, grid.width, grid.height,
                _BY_ADDRESS, stream,
            )  # fmt: skip
        if result != 0:
            raise TransferError(f"CUDA does not copy {grid.height} x {grid.width} bytes: error {result}")
        calls += 1
    return calls


def pin(storage: torch.Tensor, device: torch.device) -> None:
    """Page-lock host memory that is copied to and from a GPU. Raises TransferError where CUDA refuses."""
    with torch.cuda.device(device):
        result = torch.cuda.cudart().cudaHostRegister(storage.data_ptr(), storage.numel(), _PORTABLE)
    if int(result) != 0:
        raise TransferError(f"CUDA cannot page-lock the staging buffer: {result}")


def unpin(storage: torch.Tensor, device: torch.device) -> None:
    with torch.cuda.device(device):
        torch.cuda.cudart().cudaHostUnregister(storage.data_ptr())

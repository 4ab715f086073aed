"""The decode engine's device KV memory as a pool of Full Blocks, allocated once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from dualpath.core.geometry import KvGeometry


class BlockPool:
    """``uint8 [num_blocks, num_layers, block_tokens, bytes_per_token_layer]``; not thread-safe.

    Blocks are handed out in ascending runs where possible: attention kernels and copies like consecutive blocks.
    """

    def __init__(self, geometry: KvGeometry, num_blocks: int, device: torch.device, num_scratch: int = 0) -> None:
        """``num_scratch``: blocks behind these that are never handed out, for who needs somewhere to write."""
        self.geometry = geometry
        self.num_blocks = num_blocks
        shape = (num_blocks + num_scratch, geometry.num_layers, geometry.block_tokens, geometry.bytes_per_token_layer)
        self.tensor = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._free = [True] * num_blocks
        self._num_free = num_blocks
        self.peak_used = 0

    @property
    def num_free(self) -> int:
        return self._num_free

    @property
    def num_used(self) -> int:
        return self.num_blocks - self._num_free

    def allocate(self, count: int, after: int | None = None) -> list[int] | None:
        """``count`` blocks, or None when there are not that many. ``after``: prefer the block that follows this one."""
        if count > self._num_free:
            return None
        blocks = self._take_run(count, after)
        for block in blocks:
            self._free[block] = False
        self._num_free -= count
        self.peak_used = max(self.peak_used, self.num_used)
        return blocks

    def free(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            if self._free[block]:
                raise AssertionError(f"block {block} freed twice")
            self._free[block] = True
        self._num_free += len(blocks)

    def _take_run(self, count: int, after: int | None) -> list[int]:
        if count == 1 and after is not None and after + 1 < self.num_blocks and self._free[after + 1]:
            return [after + 1]
        free = [i for i, is_free in enumerate(self._free) if is_free]
        return _shortest_run(free, count) or free[:count]

    def check_integrity(self) -> None:
        if sum(self._free) != self._num_free:
            raise AssertionError(f"{sum(self._free)} blocks are free, {self._num_free} counted")


def device_units(blocks: Sequence[int], geometry: KvGeometry) -> npt.NDArray[np.int32]:
    """Layer Blocks of whole pool blocks, as units of the traffic manager's "device" region."""
    first = np.asarray(blocks, dtype=np.int32)[:, None] * np.int32(geometry.num_layers)
    units = first + np.arange(geometry.num_layers, dtype=np.int32)
    return units.reshape(-1).astype(np.int32, copy=False)


def _shortest_run(free: Sequence[int], count: int) -> list[int] | None:
    """The shortest stretch of consecutive free blocks that holds ``count``: best fit, so that long runs survive."""
    if count < 2:
        return None
    starts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(free)) if b != a + 1), len(free)]
    fitting = [(end - start, start) for start, end in pairwise(starts) if end - start >= count]
    if not fitting:
        return None
    _, start = min(fitting)
    return list(free[start : start + count])

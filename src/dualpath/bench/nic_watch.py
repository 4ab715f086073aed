"""Watches what every node reads from storage while a run goes on, and cuts it into windows of one second."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from bisect import bisect_right
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from dualpath.core.stats import ClusterStats
from dualpath.gateway.backend import Backend

WINDOW_S = 1.0
SAMPLE_S = 0.25  # finer than a window: a busy machine samples late, and the bytes in between are interpolated


@dataclass(slots=True)
class NicLog:
    """(moment, bytes through each node's storage NIC), oldest first; moments count from the start of the run."""

    samples: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    last: ClusterStats | None = None

    def series(self, end_s: float) -> dict[str, list[float]]:
        """Bytes that each node read in each window up to ``end_s``; the last window may be a short one.

        They add up to all that was read: a sample taken after the end counts as taken at the end.
        """
        moments = [min(moment, end_s) for moment, _ in self.samples]
        edges = [min(i * WINDOW_S, end_s) for i in range(int(end_s // WINDOW_S) + 2)]
        if len(edges) > 2 and edges[-1] == edges[-2]:
            edges.pop()
        nodes = self.samples[-1][1] if self.samples else {}
        out = {}
        for node in nodes:
            totals = [float(reads.get(node, 0)) for _, reads in self.samples]
            at = [_interpolate(moments, totals, edge) for edge in edges]
            out[node] = [after - before for before, after in itertools.pairwise(at)]
        return out


def node_reads(stats: ClusterStats) -> dict[str, int]:
    """Bytes read from storage so far, per node."""
    reads: dict[str, int] = {}
    for engine in stats.engines:
        reads[engine.node_id] = reads.get(engine.node_id, 0) + engine.storage_read_bytes
    return reads


def nic_reads(stats: ClusterStats) -> dict[str, int]:
    """Bytes that have gone through each node's storage NIC so far; blocks on their way count in part."""
    return {engine.node_id: engine.nic_read_bytes for engine in stats.engines}


def kv_transfers(stats: ClusterStats) -> dict[str, int]:
    """Bytes that crossed the compute network so far, per direction."""
    moved: dict[str, int] = {}
    for engine in stats.engines:
        for direction, num_bytes in engine.kv_transfer_bytes.items():
            moved[direction] = moved.get(direction, 0) + num_bytes
    return moved


@asynccontextmanager
async def watching(backend: Backend) -> AsyncIterator[NicLog]:
    """Samples from here to the end of the block, the last time at its very end."""
    log, start_s = NicLog(), time.perf_counter()

    async def sample() -> None:
        stats = await backend.stats()
        log.last = stats
        log.samples.append((time.perf_counter() - start_s, nic_reads(stats)))

    async def keep_sampling() -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            await sample()

    await sample()
    log.samples[0] = (0.0, log.samples[0][1])
    task = asyncio.create_task(keep_sampling())
    try:
        yield log
        await sample()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _interpolate(moments: list[float], totals: list[float], moment: float) -> float:
    after = bisect_right(moments, moment)
    if after == 0:
        return totals[0]
    if after == len(moments):
        return totals[-1]
    left, right = moments[after - 1], moments[after]
    part = (moment - left) / (right - left)
    return totals[after - 1] + part * (totals[after] - totals[after - 1])

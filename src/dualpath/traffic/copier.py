"""Local copies between regions, host or device, on a thread of their own; neighbouring Layer Blocks move as one run."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import numpy as np
import torch

from dualpath.core.errors import TransferError
from dualpath.core.runtime import Runtime
from dualpath.traffic.contract import Region, Units
from dualpath.traffic.counters import Counters
from dualpath.traffic.cuda_copies import Run, copy_grids, find_grids
from dualpath.traffic.jobs import TransferJob


class Copier:
    """Submit from any thread; copies run and end in order, on the copier's thread."""

    def __init__(
        self, name: str, runtime: Runtime, counters: Counters, on_span: Callable[[str, TransferJob], None]
    ) -> None:
        self._worker = runtime.worker(name)
        self._clock, self._counters, self._on_span = runtime, counters, on_span
        self._is_closing = False
        self._copies = RegionCopies()

    def close(self) -> None:
        """Fail what has not begun. Waits for the copy under way."""
        self._is_closing = True
        self._worker.close()

    def submit(
        self,
        job: TransferJob,
        source: Region,
        source_units: Units,
        target: Region,
        target_units: Units,
        after: Callable[[], None] | None = None,
    ) -> bool:
        """Queue a copy, and ``after`` it a comparison with what was meant. False: closed, the caller fails the job."""

        def call() -> None:
            if self._is_closing:
                raise TransferError("the engine is closing")
            job.start_s = self._clock.now_s()
            self._copies.copy(source, source_units, target, target_units)
            if after is not None:
                after()

        return self._worker.run(call, lambda error: self._end(job, error))

    def _end(self, job: TransferJob, error: Exception | None) -> None:
        if error is None:
            self._counters.local_copy_bytes += job.num_bytes
            self._on_span("copy", job)
            job.succeed()
        else:
            job.fail(error if isinstance(error, TransferError) else TransferError(f"local copy failed: {error}"))


class RegionCopies:
    """Copies between regions, ended on return: by the CPU, or by CUDA on a stream of its own. One thread."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def copy(self, source: Region, source_units: Units, target: Region, target_units: Units) -> None:
        """Raises TransferError."""
        runs = find_runs(source.addresses[source_units], target.addresses[target_units], source.unit_bytes)
        if not source.storage.is_cuda and not target.storage.is_cuda:
            for source_address, target_address, num_bytes in runs:
                ctypes.memmove(target_address, source_address, num_bytes)  # releases the GIL
            return
        device = target.storage.device if target.storage.is_cuda else source.storage.device
        stream = self._streams.get(device) or self._streams.setdefault(device, torch.cuda.Stream(device))
        with torch.cuda.stream(stream):
            copy_grids(find_grids(runs), stream.cuda_stream)
        stream.synchronize()


def find_runs(source_addresses: np.ndarray, target_addresses: np.ndarray, unit_bytes: int) -> Iterator[Run]:
    """Join units that follow each other on both sides."""
    steps = (np.diff(source_addresses) != unit_bytes) | (np.diff(target_addresses) != unit_bytes)
    starts = np.flatnonzero(np.concatenate([[True], steps]))
    lengths = np.diff(np.append(starts, len(source_addresses))) * unit_bytes
    return zip(source_addresses[starts].tolist(), target_addresses[starts].tolist(), lengths.tolist(), strict=True)

"""Whether KV is as it was made: digests of what lies in our memory, a thread that makes them, a counter of what is not.

Who made the bytes, or verified them, digests them there; who uses them, or stores them, digests them again and
compares. The digests travel in the blocks' headers (``store.header``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from dualpath.core.errors import KvCorruptError, TransferError
from dualpath.core.runtime import Runtime
from dualpath.store.hashes import digest_64
from dualpath.store.header import Digests
from dualpath.traffic.contract import Region, Transfer, Units
from dualpath.traffic.counters import Counters
from dualpath.traffic.jobs import TransferJob
from dualpath.traffic.memory import EngineMemory

_HOST_BYTES = 32 * 1024 * 1024  # of device memory, digested together


class Checks:
    """One traffic manager's. Any thread."""

    def __init__(self, name: str, runtime: Runtime, memory: EngineMemory, counters: Counters) -> None:
        # Not the thread that verifies what storage reads bring: a layer would wait behind them.
        self._worker = runtime.worker(f"{name}-digest")
        self._memory, self._counters = memory, counters

    def digests(self, region_name: str, units: Units, num_bytes: npt.NDArray[np.int64]) -> Digests:
        """Of each unit's first ``num_bytes``. Blocks for as long as it takes, the GIL being free most of the time."""
        region = self._memory.regions[region_name]
        if not region.storage.is_cuda:
            starts = region.addresses[units] - region.storage.data_ptr()
            return _digest(region.storage, starts, num_bytes)
        step = max(1, _HOST_BYTES // region.unit_bytes)
        parts = [slice(i, i + step) for i in range(0, len(units), step)]
        return np.concatenate([np.zeros(0, np.uint64), *(_from_device(region, units[p], num_bytes[p]) for p in parts)])

    def submit(self, work: Callable[[], None]) -> Transfer[int]:
        """Run ``work`` on the thread for digests. Ends like a transfer, with a TransferError if it raises."""
        job = TransferJob(num_bytes=0)
        if not self.run(work, lambda error: job.succeed() if error is None else job.fail(error)):
            job.fail(TransferError("the engine is closing"))
        return job.transfer

    def run(self, work: Callable[[], None], then: Callable[[TransferError | None], None]) -> bool:
        def end(error: Exception | None) -> None:
            if error is not None and not isinstance(error, TransferError):
                error = TransferError(f"KV could not be checked: {error!r}")
            then(error)

        return self._worker.run(work, end)

    def corrupt(self, what: str, num_blocks: int = 1) -> KvCorruptError:
        """The error to raise; it is counted."""
        self._counters.kv_corrupt += num_blocks
        return KvCorruptError(what)

    def close(self, deadline_s: float) -> None:
        self._worker.close(deadline_s)


def _digest(storage: torch.Tensor, starts: npt.NDArray[np.int64], num_bytes: npt.NDArray[np.int64]) -> Digests:
    memory = memoryview(storage.numpy().data)
    spans = zip(starts.tolist(), (starts + num_bytes).tolist(), strict=True)
    digests = (digest_64(memory[start:end]) for start, end in spans)
    return np.fromiter(digests, dtype=np.uint64, count=len(starts))


def _from_device(region: Region, units: Units, num_bytes: npt.NDArray[np.int64]) -> Digests:
    """By way of host memory, on a stream of its own: compute does not wait for it."""
    device = region.storage.device
    with torch.cuda.stream(torch.cuda.Stream(device) if region.storage.is_cuda else None):
        num_rows = region.storage.numel() // region.unit_bytes
        rows = region.storage[: num_rows * region.unit_bytes].view(-1, region.unit_bytes)
        numbers = (region.addresses[units] - region.storage.data_ptr()) // region.unit_bytes  # whole: EngineMemory
        host = rows[torch.from_numpy(numbers).to(device)].cpu()
    return _digest(host.view(-1), np.arange(len(units), dtype=np.int64) * region.unit_bytes, num_bytes)

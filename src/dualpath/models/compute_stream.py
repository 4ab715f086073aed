"""When what a model's kernels have written is really there: at once on a CPU, in stream order on CUDA.

Nothing outside of the device may read or rewrite memory that kernels are still working on. So pushes of a layer begin
``after`` its kernels, on a thread that waits for an event, while the model's thread goes on; and whoever reuses memory
after a failure, or hands out memory that was filled on the device, ``drain``s first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from dualpath.core.runtime import Runtime, run_then


class ComputeStream(Protocol):
    """One engine's."""

    def after(self, call: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
        """Run ``call`` when all kernels launched so far have ended, then ``then`` with the error that ended it, or
        None. In order. Model thread; on a CPU both run at once."""
        ...

    def drain(self) -> None:
        """Wait until the device has done everything launched so far. Any thread."""
        ...

    def close(self, deadline_s: float) -> None:
        """No more calls; those that wait are carried out, unless that takes longer."""
        ...


class HostStream:
    """Computation on CPUs: what has returned has been written."""

    def after(self, call: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
        run_then(call, then)

    def drain(self) -> None:
        """Nothing is ever under way."""

    def close(self, deadline_s: float) -> None:
        """No thread."""


class CudaStream:
    """A device's current stream, and a thread that waits for its events."""

    def __init__(self, device: torch.device, name: str, runtime: Runtime) -> None:
        self._device = device
        self._waiter = runtime.worker(f"{name}-events")

    def after(self, call: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))

        def wait() -> None:
            event.synchronize()
            call()

        if not self._waiter.run(wait, then):
            raise RuntimeError("the engine is closing")

    def drain(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()

    def close(self, deadline_s: float) -> None:
        self._waiter.close(deadline_s)


def compute_stream(device: torch.device, name: str, runtime: Runtime) -> ComputeStream:
    return CudaStream(device, name, runtime) if device.type == "cuda" else HostStream()

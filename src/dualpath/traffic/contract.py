"""The contracts inside the traffic manager: memory regions, the transport between engines, and the handle of a transfer."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from dualpath.core.ids import EngineId

T = TypeVar("T")
Units = npt.NDArray[np.int32]  # indexes of Layer Blocks inside a region


@dataclass(frozen=True, slots=True)
class Region:
    """Registered memory, divided into units of one Layer Block.

    ``storage`` is the whole allocation (kept alive, registered once); unit i occupies
    ``[addresses[i], addresses[i] + unit_bytes)``. ``units`` is the same memory as a tensor ``uint8 [..., unit_bytes]``
    whose leading dimensions, flattened, count the units.
    """

    name: str  # "staging" or "device"
    storage: torch.Tensor
    units: torch.Tensor
    unit_bytes: int
    addresses: npt.NDArray[np.int64]


class TransferState(Enum):
    IN_PROGRESS = "in_progress"
    DONE = "done"
    FAILED = "failed"


class Op(Enum):
    PULL = "pull"  # remote -> local
    PUSH = "push"  # local -> remote


class Transport(Protocol):
    """Moves Layer Blocks between engines. Every call comes from one thread, the engine's traffic thread; none blocks."""

    engine_id: EngineId

    def register(self, region: Region) -> None: ...

    def metadata(self) -> bytes:
        """What a peer needs to reach all regions registered so far."""
        ...

    def add_peer(self, metadata: bytes) -> EngineId:
        """Learn a peer (again: refresh it). Prepares descriptors of all (its units, our units)."""
        ...

    def remove_peer(self, peer: EngineId) -> None: ...

    def post(self, op: Op, peer: EngineId, local_region: str, local_units: Units, remote_region: str, remote_units: Units) -> Any:
        """Start a transfer; returns an opaque handle. Raises PeerLostError or TransferError."""
        ...

    def poll(self, handle: Any) -> TransferState: ...

    def release(self, handle: Any) -> bool:
        """Free a handle. For one still in progress: try to abort. True when no byte of it can move any more."""
        ...

    def progress(self) -> None:
        """Let peers' transfers into our memory advance."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Transfer(Generic[T]):
    """Handle of a submitted transfer: poll it, await it, or wait for it in a plain thread.

    ``result`` ends in the value, or in TransferError / TransferTimeoutError / StoreError. ``quiescent`` ends when none of
    the transfer's memory can be touched by it any more: at the same time, except after a timeout.
    """

    future: Future[T] = field(default_factory=Future)
    quiescent: Future[None] = field(default_factory=Future)

    def done(self) -> bool:
        return self.future.done()

    def result(self, timeout_s: float | None = None) -> T:
        """Block the calling thread (never the event loop's). The transfer's own deadline bounds the wait."""
        return self.future.result(timeout_s)

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self.future).__await__()

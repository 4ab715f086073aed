"""The contracts inside the traffic manager: memory regions, the transport between engines, the handle of a transfer."""

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

from dualpath.core.errors import TransferError
from dualpath.core.ids import PeerId

T = TypeVar("T")
Units = npt.NDArray[np.int32]  # indexes of Layer Blocks inside a region


@dataclass(frozen=True, slots=True)
class Region:
    """Registered memory, divided into units: Layer Blocks, or blocks' headers.

    ``storage`` is the whole allocation (uint8, contiguous, kept alive), which regions may share; unit i occupies
    ``[addresses[i], addresses[i] + unit_bytes)``.
    """

    name: str  # see ``traffic.staging``
    storage: torch.Tensor
    unit_bytes: int
    addresses: npt.NDArray[np.int64]

    @property
    def num_units(self) -> int:
        return len(self.addresses)


class TransferState(Enum):
    IN_PROGRESS = "in_progress"
    DONE = "done"
    FAILED = "failed"


class Op(Enum):
    PULL = "pull"  # remote -> local
    PUSH = "push"  # local -> remote


class Transport(Protocol):
    """Moves Layer Blocks between engines. Every call comes from one thread, the engine's traffic thread; none blocks.

    Until that thread runs, its creator's takes its place: it opens the store's I/O and registers memory.
    """

    peer_id: PeerId  # our own name among peers
    agent: Any  # the NIXL agent for ``BlockStore.open_io``; None where there is none

    def register(self, region: Region) -> None:
        """Make memory reachable for peers and usable as the local side. Before ``metadata`` is handed out."""
        ...

    def metadata(self) -> bytes:
        """What a peer needs to reach all regions registered so far."""
        ...

    def add_peer(self, metadata: bytes) -> PeerId:
        """Learn a peer and prepare descriptors of all its units. Again with the same metadata: no change.

        Raises PeerLostError where the peer is gone, TransferError where the metadata is not a peer's.
        """
        ...

    def remove_peer(self, peer: PeerId) -> None:
        """Forget a peer, known or not; transfers with it that are in progress have FAILED. It may be added again.

        On return nothing that the peer began, and nothing of our transfers with it, moves in our memory any more. What
        our pushes still write at the peer, only the peer's own ``remove_peer`` ends.
        """
        ...

    @property
    def peers(self) -> tuple[PeerId, ...]:
        """Who has been added, or has added us, and was not removed. Any thread."""
        ...

    def post(
        self, op: Op, peer: PeerId, local_region: str, local_units: Units, remote_region: str, remote_units: Units
    ) -> Any:
        """Start a transfer; returns an opaque handle. Raises PeerLostError or TransferError, and then nothing moves."""
        ...

    def poll(self, handle: Any) -> TransferState:
        """Where a transfer stands. DONE is final and at rest.

        FAILED is final too, but bytes of it may still move until ``remove_peer`` has returned on the side where they
        arrive: ours for a pull, the peer's for a push.
        """
        ...

    def failure(self, handle: Any) -> TransferError:
        """Why a FAILED transfer failed: PeerLostError or TransferError."""
        ...

    def release(self, handle: Any) -> bool:
        """Free a handle. For one still in progress: try to abort. False: it goes on, call again later."""
        ...

    def progress(self) -> None:
        """Let peers' transfers into and out of our memory advance, and new connections be made."""
        ...

    def close(self) -> None:
        """Deregister everything and free the agent. Transfers still in progress may go on; their memory must live."""
        ...


@dataclass(slots=True, eq=False)
class Transfer(Generic[T]):
    """Handle of a submitted transfer: poll it, await it, or let a worker's thread wait (``Runtime.wait``).

    ``future`` ends in the value, or in TransferError / TransferTimeoutError / StoreError. ``quiescent`` ends when the
    transfer can touch none of *our* memory any more: just before ``future``, except after a timeout or a closed
    manager, when it comes later. ``settled`` ends when it can touch no memory at all: with ``quiescent``, except for a
    push that did not succeed, whose bytes may arrive at the peer until that is known to be at rest. Dropping the handle
    or cancelling a task that awaits it cancels nothing.
    """

    future: Future[T] = field(default_factory=Future)
    quiescent: Future[None] = field(default_factory=Future)
    settled: Future[None] = field(default_factory=Future)

    def __post_init__(self) -> None:
        # A running future cannot be cancelled: asyncio.wrap_future passes its own cancellation on to it.
        for future in (self.future, self.quiescent, self.settled):
            future.set_running_or_notify_cancel()

    def done(self) -> bool:
        return self.future.done()

    def __await__(self) -> Generator[Any, None, T]:
        # A task that stops waiting must not cancel the transfer: its bytes move all the same.
        ended = asyncio.wrap_future(self.future)
        ended.add_done_callback(_look_at)
        return asyncio.shield(ended).__await__()


def _look_at(ended: asyncio.Future[Any]) -> None:
    """How a transfer ends that nobody awaits any more is nobody's error: asyncio is not to log it."""
    if not ended.cancelled():
        ended.exception()

"""What the traffic thread keeps of a transfer: its handle, its slots, its deadline, and the only ways it can end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dualpath.core.ids import PeerId
from dualpath.store.contract import IoRequest, IoTicket
from dualpath.traffic.contract import Op, Transfer, Units
from dualpath.traffic.slots import SlotPool

Trace = Callable[[str, float, float, Mapping[str, Any]], None]  # (name, start_s, end_s, args)
Hold = tuple[SlotPool, Sequence[int]]


@dataclass(slots=True, eq=False, kw_only=True)
class TransferJob:
    """One submitted transfer. Its slots are held from submission until nothing of it can touch them."""

    num_bytes: int
    deadline_s: float = 0.0  # how long it may take once begun
    holds: Sequence[Hold] = ()
    transfer: Transfer[int] = field(default_factory=Transfer)
    start_s: float = 0.0
    deadline_at_s: float = 0.0

    def succeed(self) -> None:
        self.settle()
        if not self.transfer.future.done():
            self.transfer.future.set_result(self.num_bytes)

    def fail(self, error: Exception) -> None:
        """It has ended, and nothing of it moves any more."""
        self.settle()
        self.abandon(error)

    def abandon(self, error: Exception) -> None:
        """Whoever waits is told; the slots stay held until ``quiesce``."""
        if not self.transfer.future.done():
            self.transfer.future.set_exception(error)

    def settle(self) -> None:
        """Nothing of it moves anywhere any more."""
        self.quiesce()
        if not self.transfer.settled.done():
            self.transfer.settled.set_result(None)

    def quiesce(self) -> None:
        """Nothing of it moves in our memory any more."""
        if not self.transfer.quiescent.done():
            for pool, slots in self.holds:
                pool.unhold(slots)
            self.transfer.quiescent.set_result(None)


@dataclass(slots=True, eq=False, kw_only=True)
class PeerJob(TransferJob):
    """Layer Blocks between this engine and a peer."""

    op: Op
    peer: PeerId
    local_region: str
    local_units: Units
    remote_region: str
    remote_units: Units
    after: Callable[[], None] | None = None  # when it has arrived, before it ends: see ``TrafficManager.pull``
    handle: Any = None


@dataclass(slots=True, eq=False, kw_only=True)
class StorageJob(TransferJob):
    """One stored object. ``before`` and ``after`` moving it, the hash thread runs these; they raise StoreError."""

    request: IoRequest
    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None
    ticket: IoTicket | None = None
    has_moved: bool = False  # its bytes went through the storage NIC, whatever they turn out to be
    earliest_end_s: float = 0.0  # the storage NIC's emulation does not let it end before

"""What a NixlTransport remembers of its peers and transfers, and what it tells peers of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from dualpath.core.errors import TransferError
from dualpath.core.ids import PeerId
from dualpath.traffic.contract import Op, TransferState, Units
from dualpath.traffic.nixl_peer_agent import PeerAgent
from dualpath.traffic.nixl_regions import RegionTable

METADATA_VERSION = 2


class Metadata(msgspec.Struct, array_like=True):
    version: int
    peer_id: str
    main_agent: bytes
    regions: list[RegionTable]


@dataclass(slots=True, eq=False)
class Handle:
    peer: PeerId
    op: Op
    local_region: str
    local_units: Units
    remote_region: str
    remote_units: Units
    transfer: Any = None  # None: not begun, or over and freed
    num_polls: int = 0
    state: TransferState = TransferState.IN_PROGRESS
    error: TransferError | None = None

    def fail(self, error: TransferError) -> None:
        if self.state is TransferState.IN_PROGRESS:
            self.error, self.state = error, TransferState.FAILED


@dataclass(slots=True, eq=False)
class Peer:
    agent: PeerAgent
    number: int  # of our agent
    main_agent: bytes
    heard_before: int  # highest number of an agent that the peer has made for a former one of ours
    metadata: bytes | None = None  # None: it added us, we have not added it
    regions: dict[str, RegionTable] = field(default_factory=dict)
    their_number: int = 0  # of the peer's agent that ours is connected with; 0: none yet
    has_left: bool = False  # it removed us
    handles: set[Handle] = field(default_factory=set)  # not yet released

    def is_left_by(self, number: int) -> bool:
        """Is the peer's agent of this number ours, or has it gone before we could connect?"""
        return number == self.their_number or (not self.their_number and number > self.heard_before)

    def fail_all(self, error: TransferError) -> None:
        for handle in self.handles:
            handle.fail(error)

"""Counters of every byte and every block that went wrong. One thread writes each field, anybody reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

from dualpath.core.errors import BlockCorruptError, BlockMissingError
from dualpath.core.ids import PeerId
from dualpath.core.latency import NOTHING_COUNTED, Latencies, LatencyCounts
from dualpath.core.plan import Direction, Role
from dualpath.traffic.contract import Op


@dataclass(frozen=True, slots=True)
class TrafficStats:
    """What a traffic manager has moved so far, and what it is moving now."""

    storage_read_bytes: int
    storage_write_bytes: int
    kv_transfer_bytes: dict[str, int]  # Direction value -> bytes of transfers that this engine initiated
    local_copy_bytes: int
    blocks_missing: int
    blocks_corrupt: int
    blocks_failed: int
    blocks_not_persisted: int
    kv_corrupt: int
    read_queue_tokens: int  # tokens of submitted, unfinished storage reads
    num_in_flight: int = 0  # transfers that somebody waits for, queued ones included
    num_lingering: int = 0  # transfers that nobody waits for any more but that may still touch memory
    peers: tuple[PeerId, ...] = ()  # that can move bytes in or out of our memory
    broken_peers: tuple[PeerId, ...] = ()  # removed after a failure, and not known to be at rest
    storage_stalled_s: float = 0.0  # how long the oldest file-system call has had no answer
    storage_read_latency: LatencyCounts = NOTHING_COUNTED
    storage_write_latency: LatencyCounts = NOTHING_COUNTED
    nic_read_bytes: int = 0  # through the storage NIC of the node, by all of its engines, up to this moment


@dataclass(slots=True)
class Counters:
    """Written by the traffic thread, except: ``reads_submitted`` by submitters, ``local_copy_bytes`` by the copier.

    ``kv_corrupt`` by whoever notices; two at the same moment may count as one.
    """

    storage_read_bytes: int = 0
    storage_write_bytes: int = 0
    kv_transfer_bytes: dict[str, int] = field(default_factory=lambda: {direction.value: 0 for direction in Direction})
    local_copy_bytes: int = 0
    blocks_missing: int = 0
    blocks_corrupt: int = 0
    blocks_failed: int = 0
    blocks_not_persisted: int = 0
    kv_corrupt: int = 0
    reads_submitted: int = 0
    reads_ended: int = 0
    read_latency: Latencies = field(default_factory=Latencies)  # of what came to an end, well or not
    write_latency: Latencies = field(default_factory=Latencies)

    def count_read_failure(self, error: Exception) -> None:
        if isinstance(error, BlockMissingError):
            self.blocks_missing += 1
        elif isinstance(error, BlockCorruptError):
            self.blocks_corrupt += 1
        else:
            self.blocks_failed += 1


def direction_of(role: Role, op: Op) -> Direction:
    """An engine's peers have the other role, and a pull moves bytes from the peer to the engine."""
    to_prefill = (role is Role.PREFILL) == (op is Op.PULL)
    return Direction.DECODE_TO_PREFILL if to_prefill else Direction.PREFILL_TO_DECODE

"""Snapshots of what engines and the cluster have done and hold: plain numbers for metrics, status and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dualpath.core.ids import EngineId, NodeId, PeerId
from dualpath.core.latency import NOTHING_COUNTED, LatencyCounts
from dualpath.core.phase import Phase
from dualpath.core.plan import Role


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters only grow; gauges are the state at the moment of the snapshot."""

    engine_id: EngineId
    node_id: NodeId
    role: Role
    # counters
    storage_read_bytes: int = 0
    storage_write_bytes: int = 0
    nic_read_bytes: int = 0  # through the storage NIC of its node, by all engines there; grows while a block moves
    kv_transfer_bytes: dict[str, int] = field(default_factory=dict)  # Direction value -> bytes, counted where initiated
    local_copy_bytes: int = 0
    blocks_missing: int = 0
    blocks_corrupt: int = 0
    blocks_failed: int = 0  # storage reads that failed or passed their deadline
    blocks_not_persisted: int = 0  # storage writes that failed; serving went on
    kv_corrupt: int = 0  # Layer Blocks and headers that were not as they were made when it came to use; none was used
    num_forwards: int = 0
    storage_read_latency: LatencyCounts = NOTHING_COUNTED  # of one block, from its start: queues are not in it
    storage_write_latency: LatencyCounts = NOTHING_COUNTED
    prefill_stall_s: tuple[float, ...] = ()  # per layer: the compute stood still until its history was there
    prefill_push_s: float = 0.0  # after the last layer, until all new rows had left
    prefill_forward_s: float = 0.0  # of all forwards, both included
    # gauges
    num_requests: int = 0
    read_queue_tokens: int = 0
    staging_slots: int = 0
    staging_slots_used: int = 0
    staging_slots_aside: int = 0  # damage was found in them: out of use for a while
    transfers_lingering: int = 0  # given up, but able to touch their slots still: those stay out of use
    peers: tuple[PeerId, ...] = ()  # that can move bytes in or out of its memory
    broken_peers: tuple[PeerId, ...] = ()  # a transfer with them failed: see dualpath.protocol.api
    storage_stalled_s: float = 0.0  # how long the oldest file-system call has had no answer
    device_kv_bytes: int = 0  # allocated once
    device_kv_used_bytes: int = 0
    device_kv_peak_bytes: int = 0  # most ever in use


@dataclass(frozen=True, slots=True)
class NodeStats:
    """A node as its scheduler sees it. Rates are those configured, in bytes per second each way; None: unknown."""

    node_id: NodeId
    role: Role
    engines: tuple[EngineId, ...]
    host: str = ""
    pid: int = 0
    is_up: bool = True
    silent_s: float = 0.0  # since the last sign of life
    num_messages: int = 0  # batches of results and tokens received from it
    storage_nic: str | None = None
    storage_nic_bytes_per_s: float | None = None
    compute_nic: str | None = None
    compute_nic_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Whether storage takes blocks, and how many, as the scheduler sees it."""

    accepts_writes: bool = True
    reason: str = ""  # why not
    since_unix_s: float = 0.0  # since when it does, or does not
    used_bytes: int = 0  # by blocks that can be hit, and by damaged ones that are still to be deleted
    capacity_bytes: int | None = None  # beyond it the least recently used go; moves with the file system's free space
    free_bytes: int | None = None  # what the file system still has; None: not known, or not asked
    stalled_s: float = 0.0  # how long the oldest call into its directory has had no answer


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What a scheduler and its engines go by, fixed from the start."""

    system: str  # a name of dualpath.scheduler.policy.systems, or a path policy's
    num_layers: int
    object_bytes: int  # of a stored block, with its header
    alpha_tokens: int
    beta_tokens: int
    expected_output_tokens: int
    quota_s: float  # attention time of a prefill forward, where the model is profiled
    max_batch_tokens: int
    prefill_kv_tokens: int  # of one prefill engine
    decode_kv_tokens: int  # of one decode engine


@dataclass(frozen=True, slots=True)
class ClusterStats:
    engines: tuple[EngineStats, ...]
    num_queued_requests: int = 0
    num_running_requests: int = 0
    index_blocks: int = 0
    nodes: tuple[NodeStats, ...] = ()
    store: StoreStats | None = None
    requests_in_phase: dict[str, int] = field(default_factory=dict)  # Phase value -> how many are in it now
    epoch: int = 0  # how often an engine was lost or came back
    block_tokens: int | None = None  # in a Full Block
    block_bytes: int | None = None  # of a Full Block
    facts: ClusterFacts | None = None
    inter_token_latency: LatencyCounts = NOTHING_COUNTED  # between two tokens of a request
    is_paused: bool = False  # requests are given to no engine

    def with_requests(self, in_phase: Mapping[str, int]) -> ClusterStats:
        """With these requests, be they at one gateway or at several."""
        num_queued = in_phase.get(Phase.QUEUED.value, 0)
        return replace(
            self,
            num_queued_requests=num_queued,
            num_running_requests=sum(in_phase.values()) - num_queued,
            requests_in_phase=dict(in_phase),
        )

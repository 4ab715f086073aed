"""The scheduler's settings: thresholds of the paper's policies, queue bounds, deadlines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dualpath.core.errors import ConfigError
from dualpath.core.ids import NodeId
from dualpath.scheduler.policy.path_choice import path_policy
from dualpath.scheduler.policy.prefill_choice import PrefillLimits
from dualpath.scheduler.policy.systems import Assignment


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Frozen; variants by ``dataclasses.replace``. Every deadline is in seconds."""

    # policy
    path_policy: str = "shorter"  # a name in PATH_POLICIES
    prefill_choice: Assignment = Assignment.LOAD
    decode_choice: Assignment = Assignment.LOAD
    alpha_tokens: int = 1_000_000  # tokens a node reads from storage in 3 s; profiled, never guessed
    beta_tokens: int = 100_000  # tokens one prefill engine computes in 5 s; profiled, never guessed
    nic_bytes_per_s: Mapping[NodeId, float] = field(default_factory=dict)  # storage NICs that differ from the default
    default_nic_bytes_per_s: float = 50e9  # 400 Gbit/s
    expected_output_tokens: int = 256  # device memory set aside for a request's output beyond what it has produced
    # queue
    max_queued_requests: int = 1024  # beyond: refused with 429
    queue_timeout_s: float = 300.0  # longest wait for engines
    retry_after_s: float = 1.0  # told to refused clients
    # retries: see dualpath.scheduler.retry_policy
    max_retries: int = 3  # times engines may fail a request without a token in between; a preemption is no failure
    retry_budget_s: float = 60.0  # how long a request that comes no further is tried again
    pause_s: float = 0.05  # before anything that failed is tried again; doubles up to pause_max_s
    pause_max_s: float = 2.0
    # deadlines behind the engines' own, so that nothing ever waits for good
    durable_timeout_s: float = 30.0  # for a hit block that is still being written; then it is recomputed
    reserve_timeout_s: float = 300.0
    read_timeout_s: float = 120.0
    prefill_timeout_s: float = 600.0  # to enter a forward batch, and again to produce the first token
    decode_timeout_s: float = 600.0  # between two steps of a request
    weights_timeout_s: float = 1800.0  # for an engine to load other weights
    release_timeout_s: float = 10.0
    peer_timeout_s: float = 30.0  # for an engine to learn or forget another
    stats_timeout_s: float = 10.0  # an engine that does not answer in time is taken for lost
    watch_interval_s: float = 5.0  # how often every engine is asked for its status
    lease_s: float = 60.0  # how long an engine that is lost may go on computing; then its process has ended itself
    probe_interval_s: float = 1.0  # how often a lost engine is asked whether it is back
    storage_stalled_s: float = 5.0  # a node whose storage has not answered for so long is spared reads
    # bookkeeping
    capacity_bytes: int | None = None  # of the block store; None: capacity_fraction
    capacity_fraction: float | None = None  # of what the file system holds for us and has free; None: never evict
    max_finished_records: int = 1000

    def __post_init__(self) -> None:
        path_policy(self.path_policy)
        for name in ("alpha_tokens", "max_retries", "expected_output_tokens", "max_finished_records"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in self.__dataclass_fields__:
            if name.endswith("_s") and name != "nic_bytes_per_s" and not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("beta_tokens", "max_queued_requests"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if any(not rate > 0 for rate in self.nic_bytes_per_s.values()):
            raise ConfigError("nic_bytes_per_s must be positive for every node")

    @property
    def prefill_limits(self) -> PrefillLimits:
        return PrefillLimits(self.alpha_tokens, self.beta_tokens)

    def nic_rate(self, node_id: NodeId) -> float:
        """Bytes per second of the node's storage NIC."""
        return self.nic_bytes_per_s.get(node_id, self.default_nic_bytes_per_s)

"""What happened between two looks at a cluster: bytes per second by node, requests by phase; and what cannot be known.

Time that requests spent in a phase, over the time between the looks, is how many were in it on average (Little's law).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dualpath.core.ids import EngineId, NodeId
from dualpath.core.phase import BEFORE_FIRST_TOKEN, Phase
from dualpath.core.plan import Role
from dualpath.core.request import RecordAnswer, RequestRecord
from dualpath.core.stats import ClusterStats, EngineStats, NodeStats

MIN_INTERVAL_S = 0.5  # counters grow by whole blocks: rates over less are chance
_RUNNING = "running"  # RequestRecord.outcome


@dataclass(frozen=True, slots=True)
class ClusterLook:
    """A cluster at one moment.

    ``records``: the recent requests, running ones included; None: not known. ``lack``: what of them is not there.
    """

    taken_s: float  # on a clock that does not jump
    stats: ClusterStats
    records: Sequence[RequestRecord] | None = None
    lack: Sequence[str] = ()

    @staticmethod
    def of(taken_s: float, stats: ClusterStats, found: RecordAnswer) -> ClusterLook:
        """``stats`` count one gateway's requests, ``found`` those of all."""
        known = stats if found.in_phase is None else stats.with_requests(found.in_phase)
        return ClusterLook(taken_s, known, found.records, found.lack())

    def without_records(self) -> ClusterLook:
        """For who asks about engines alone: a thousand records take longer to compare than all else."""
        return ClusterLook(self.taken_s, self.stats)


class Change:
    """Between ``before`` and ``after``, which must be later."""

    def __init__(self, before: ClusterLook, after: ClusterLook) -> None:
        self.interval_s = after.taken_s - before.taken_s
        self.stats = after.stats
        self.nodes: dict[NodeId, NodeStats] = {node.node_id: node for node in after.stats.nodes}
        self.missing: list[str] = []  # data, a sentence each
        self._before = {engine.engine_id: engine for engine in before.stats.engines}
        # Engines before and after, but those whose counters cannot be compared.
        self.pairs = [pair for engine in after.stats.engines if (pair := self._pair(engine)) is not None]
        self.num_in_phase = self._phases(before, after)

    def _pair(self, engine: EngineStats) -> tuple[EngineStats, EngineStats] | None:
        """The engine before and after; None when its counters cannot be compared."""
        old = self._before.get(engine.engine_id)
        if old is None:
            self.missing.append(f"engine {engine.engine_id} is new since the first look: its rates are not known")
        elif any(count(engine) < count(old) for count in _COUNTERS):
            self.missing.append(f"engine {engine.engine_id} was started again between the looks: its rates are unknown")
        else:
            return old, engine
        return None

    def _phases(self, before: ClusterLook, after: ClusterLook) -> dict[str, float] | None:
        """Requests in each phase, on average; None where records do not say."""
        self.missing += after.lack
        if before.records is None or after.records is None:
            self.missing.append("records of requests: where requests wait is not known")
            return None
        num_alive = after.stats.num_queued_requests + after.stats.num_running_requests
        num_seen = sum(record.outcome == _RUNNING for record in after.records)
        if 2 * num_seen < num_alive:  # the two were not asked for at one moment
            self.missing.append(
                f"records of requests: {num_seen} of {num_alive} running ones can be seen (does the key see all?)"
            )
            return None
        old = {record.request_id: record.phases_s for record in before.records}
        oldest_s = min((record.arrived_unix_s for record in before.records), default=0.0)
        spent_s = dict.fromkeys((phase.value for phase in Phase), 0.0)
        for record in after.records:
            if record.request_id not in old and record.arrived_unix_s < oldest_s:
                continue  # it had been running beyond the first list's end: its time before is unknown
            known = old.get(record.request_id, {})
            for phase, duration_s in record.phases_s.items():
                spent_s[phase] = spent_s.get(phase, 0.0) + max(0.0, duration_s - known.get(phase, 0.0))
        return {phase: time_s / self.interval_s for phase, time_s in spent_s.items()}

    def requests_in(self, *phases: Phase) -> float:
        """How many requests were in these phases on average; 0 where that is not known."""
        return sum((self.num_in_phase or {}).get(phase.value, 0.0) for phase in phases)

    def share_before_first_token(self, *phases: Phase) -> float:
        """Of the time between arrival and first token, that in these phases; 0 to 1."""
        total = self.requests_in(*BEFORE_FIRST_TOKEN)
        return self.requests_in(*phases) / total if total else 0.0

    def engines(self, role: Role) -> list[EngineStats]:
        return [engine for engine in self.stats.engines if engine.role is role]

    def grown(self, counter: Callable[[EngineStats], int], node_id: NodeId | None = None) -> int:
        """By how much a counter grew, over the engines of a node or of all."""
        return sum(counter(new) - counter(old) for old, new in self._of(node_id))

    def nic_read_bytes_per_s(self, node_id: NodeId) -> float:
        """Of a node's storage NIC; each engine there counts all that passed, at its own moment."""
        moved = [new.nic_read_bytes - old.nic_read_bytes for old, new in self._of(node_id)]
        return max(moved, default=0) / self.interval_s

    def bytes_per_s(self, counter: Callable[[EngineStats], int], node_id: NodeId) -> float:
        return self.grown(counter, node_id) / self.interval_s

    def silent_engines(self) -> Iterable[tuple[EngineId, NodeId]]:
        """Those that a node should have and that gave no answer."""
        there = {engine.engine_id for engine in self.stats.engines}
        for node in self.nodes.values():
            yield from ((engine_id, node.node_id) for engine_id in node.engines if engine_id not in there)

    def _of(self, node_id: NodeId | None) -> list[tuple[EngineStats, EngineStats]]:
        return [pair for pair in self.pairs if node_id is None or pair[1].node_id == node_id]


def transferred_bytes(direction: str) -> Callable[[EngineStats], int]:
    return lambda engine: engine.kv_transfer_bytes.get(direction, 0)


_COUNTERS: tuple[Callable[[EngineStats], int], ...] = (
    lambda engine: engine.storage_read_bytes,
    lambda engine: engine.storage_write_bytes,
    lambda engine: engine.num_forwards,
    lambda engine: sum(engine.kv_transfer_bytes.values()),
)

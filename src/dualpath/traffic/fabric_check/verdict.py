"""From samples to a verdict: what KV does to the collectives' tail, and how much it moved beside them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dualpath.traffic.fabric_check.plan import CheckPlan, Load

MAX_P99_RATIO = 1.15  # collectives' p99 beside KV over idle
MIN_KV_SHARE = 0.8  # of what the collectives leave of a NIC


@dataclass(frozen=True, slots=True)
class RankSample:
    """One rank's part of a phase."""

    latencies_s: tuple[float, ...]  # of every collective
    duration_s: float  # of all of them, pauses included
    kv_bytes: int  # that arrived at the next rank meanwhile


@dataclass(frozen=True, slots=True)
class ClusterPhase:
    """All ranks together."""

    load: Load
    p50_s: float
    p99_s: float
    duration_s: float
    collective_bytes_per_s: float  # each direction of each NIC
    kv_bytes_per_s: tuple[float, ...]  # sent by each rank
    kv_share: float | None  # of what the collectives left of the NIC, the slowest direction; None without KV

    @classmethod
    def of(cls, load: Load, samples: Sequence[RankSample], plan: CheckPlan) -> ClusterPhase:
        """A sample for every rank. All latencies count alike: each is one rank's wait."""
        latencies = np.concatenate([sample.latencies_s for sample in samples])
        duration_s = statistics.mean(sample.duration_s for sample in samples)
        collective = plan.num_ops * plan.sent_bytes / duration_s
        kv = tuple(sample.kv_bytes / sample.duration_s for sample in samples)
        share = None if load is Load.IDLE else min(kv) / (plan.nic_bytes_per_s - collective)
        p50_s, p99_s = np.percentile(latencies, [50, 99])
        return cls(load, float(p50_s), float(p99_s), duration_s, collective, kv, share)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "load": self.load.value}


@dataclass(frozen=True, slots=True)
class CheckResult:
    plan: CheckPlan
    phases: tuple[ClusterPhase, ...]
    has_real_time: bool  # collectives ran with real-time priority; without, the tail is the CPU's too

    def median_p99_s(self, load: Load) -> float:
        """Over the phases, not over all samples: one phase that something else disturbed does not decide."""
        return statistics.median(phase.p99_s for phase in self.of(load))

    def of(self, load: Load) -> list[ClusterPhase]:
        return [phase for phase in self.phases if phase.load is load]

    def p99_ratio(self, load: Load = Load.KV) -> float:
        return self.median_p99_s(load) / self.median_p99_s(Load.IDLE)

    @property
    def kv_share(self) -> float:
        return statistics.median(phase.kv_share or 0.0 for phase in self.of(Load.KV))

    @property
    def is_isolated(self) -> bool:
        return self.p99_ratio() <= MAX_P99_RATIO

    @property
    def is_kv_served(self) -> bool:
        return self.kv_share >= MIN_KV_SHARE

    @property
    def holds(self) -> bool:
        return self.is_isolated and self.is_kv_served

    def to_json(self) -> dict[str, Any]:
        return {
            "plan": self.plan.to_json(),
            "phases": [phase.to_json() for phase in self.phases],
            "real_time_priority": self.has_real_time,
            "p99_ratio": self.p99_ratio(),
            "p99_ratio_without_classes": self.p99_ratio(Load.UNCLASSED_KV) if self.plan.contrast else None,
            "max_p99_ratio": MAX_P99_RATIO,
            "kv_share": self.kv_share,
            "min_kv_share": MIN_KV_SHARE,
            "isolated": self.is_isolated,
            "kv_served": self.is_kv_served,
            "holds": self.holds,
        }

"""What a user asks of the planner: workload, limits, what may be bought, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from dualpath.core.errors import ConfigError
from dualpath.scheduler.policy.systems import SYSTEMS
from dualpath.sim.plan.statistics import TurnStatistics, make_trajectories
from dualpath.sim.spec import SimSpec, WorkloadSpec
from dualpath.sim.workload import load_trajectories
from dualpath.trace.trajectory import Trajectory
from dualpath.trace.transform import resample

MAX_NODES = 1024  # every division of every number of nodes is looked at
LIMIT_STATISTICS = ("mean", "p50", "p90", "p99")


@dataclass(frozen=True, slots=True)
class Prices:
    """In any currency, per hour. All 0: clusters are compared by GPUs, then storage bandwidth, then memory."""

    gpu_hour: float = 0.0
    snic_hour: float = 0.0  # of one storage NIC, whatever its speed
    staging_gb_hour: float = 0.0  # of 1e9 bytes of staging memory

    def __post_init__(self) -> None:
        for name in ("gpu_hour", "snic_hour", "staging_gb_hour"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"price per {name}: must be a finite number of at least 0, not {value}")

    @property
    def are_given(self) -> bool:
        return self.gpu_hour > 0 or self.snic_hour > 0 or self.staging_gb_hour > 0


@dataclass(frozen=True, slots=True)
class Space:
    """What the search may choose from."""

    engines_per_node: int = 8
    group_engines: tuple[
        int, ...
    ] = ()  # GPUs that share one copy of the FFN; empty: the fewest nodes that hold it, and twice as many
    max_nodes: int = 16
    snics: tuple[int, ...] = (1, 2)  # storage NICs of a node
    snic_gbps: tuple[float, ...] = (400.0,)
    staging_bytes: tuple[int, ...] = (80_000_000_000,)
    systems: tuple[str, ...] = ("basic", "shorter", "split")

    def __post_init__(self) -> None:
        if not 2 <= self.max_nodes <= MAX_NODES:
            raise ConfigError(
                f"max_nodes: must be from 2, a prefill and a decode node, to {MAX_NODES}, not {self.max_nodes}"
            )
        for name in ("snics", "snic_gbps", "staging_bytes", "group_engines"):
            values: Sequence[float] = getattr(self, name)
            if name != "group_engines" and not values:
                raise ConfigError(f"{name}: names no value")
            bad = [value for value in values if not (value > 0 and math.isfinite(value))]
            if bad:
                raise ConfigError(f"{name}: must be positive, not {bad[0]}")
        for name in self.systems:
            if name not in SYSTEMS or SYSTEMS[name].skips_io:
                real = [known for known, policy in SYSTEMS.items() if not policy.skips_io]
                raise ConfigError(f"systems: no system {name!r} to buy a cluster for; choose from {', '.join(real)}")
        if not self.systems:
            raise ConfigError("systems: names no system")


@dataclass(frozen=True, slots=True)
class Question:
    """Limits are in ``base.workload``; with ``aps`` they are on latencies, without on the job's time alone."""

    base: SimSpec  # model, scheduler, workload; its cluster gives what is not searched
    space: Space = field(default_factory=Space)
    prices: Prices = field(default_factory=Prices)
    statistics: TurnStatistics | None = None  # instead of the workload's trace
    max_jct_s: float | None = None  # of all agents at once
    limit_statistic: str = "mean"  # of the latencies that the limits are on
    num_seeds: int = 3  # of the final check, beside the search's own
    max_requests: int = 40_000  # of one simulation of the search: larger clusters are simulated at a smaller scale
    max_simulations: int = 120

    def __post_init__(self) -> None:
        if self.max_jct_s is not None and not (self.max_jct_s > 0 and math.isfinite(self.max_jct_s)):
            raise ConfigError(f"max_jct_s: must be a positive number, not {self.max_jct_s}")
        if self.max_jct_s is not None and self.is_online:
            raise ConfigError("max_jct_s: is a limit on agents that start at once, not on agents that arrive")
        if self.limit_statistic not in LIMIT_STATISTICS:
            raise ConfigError(
                f"slo_statistic: must be one of {', '.join(LIMIT_STATISTICS)}, not {self.limit_statistic!r}"
            )
        for name in ("num_seeds", "max_requests", "max_simulations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, not {getattr(self, name)}")

    @property
    def is_online(self) -> bool:
        return self.base.workload.aps is not None

    @property
    def has_no_limit(self) -> bool:
        """Agents that all start at once may take as long as they like: then the cheapest job is looked for."""
        return not self.is_online and self.max_jct_s is None

    def trajectories(self, work: WorkloadSpec, num_agents: int) -> list[Trajectory]:
        """One for each agent of a simulation; the same workload and seed give the same ones."""
        if self.statistics is None:
            return load_trajectories(work)
        made = make_trajectories(self.statistics, min(num_agents, 500), work.seed)
        return made if len(made) == num_agents else resample(made, num_agents, work.seed)

"""What changing roles is worth: a load whose balance shifts halfway, on every fixed P/D ratio and on a changing one.

First turns append much and generate little, like agents that read; then they append little and generate much, like
agents that write. No fixed ratio suits both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dualpath.core.errors import ConfigError
from dualpath.core.plan import Role
from dualpath.scheduler.policy.role_switch import RoleSwitchSettings
from dualpath.sim.cost import ModelCost
from dualpath.sim.roles import Changed, prepare_switching
from dualpath.sim.simulation import simulate
from dualpath.sim.spec import SimSpec
from dualpath.trace.trajectory import Round, Trajectory

MAX_AGENTS, MAX_TURNS = 100_000, 10_000
SPREAD = 0.5  # lengths are uniform within this share of their mean, both ways


@dataclass(frozen=True, slots=True)
class ShiftingLoad:
    """Mean tokens of a turn in the first and in the second half of every agent's turns."""

    agents: int = 400
    turns: int = 20
    read_append_tokens: int = 4000
    read_generate_tokens: int = 20
    write_append_tokens: int = 50
    write_generate_tokens: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        for name, most in (("agents", MAX_AGENTS), ("turns", MAX_TURNS)):
            if not 2 <= getattr(self, name) <= most:
                raise ConfigError(f"{name}: must be from 2 to {most}, not {getattr(self, name)}")

    def trajectories(self) -> list[Trajectory]:
        """One for each agent."""
        found = []
        for index in range(self.agents):
            rng = np.random.default_rng((self.seed, index))
            half = self.turns // 2
            means = [(self.read_append_tokens, self.read_generate_tokens)] * half
            means += [(self.write_append_tokens, self.write_generate_tokens)] * (self.turns - half)
            factors = rng.uniform(1 - SPREAD, 1 + SPREAD, (self.turns, 2)).tolist()
            rounds = tuple(
                Round(max(1, round(append * a)), max(1, round(generate * g)))
                for (append, generate), (a, g) in zip(means, factors, strict=True)
            )
            found.append(Trajectory(f"shifting-{index}", rounds))
        return found


@dataclass(frozen=True, slots=True)
class SwitchRow:
    """One cluster's job; ``num_prefill`` nodes at the beginning, of a changing one also at the end."""

    num_prefill: int
    jct_s: float
    ttft_s: float
    tpot_s: float
    changes: tuple[Changed, ...] | None = None  # None: the ratio is fixed
    last_prefill: int | None = None


@dataclass(frozen=True, slots=True)
class SwitchStudy:
    num_nodes: int
    fixed: list[SwitchRow]
    changing: list[SwitchRow]  # by where they begin

    @property
    def best_fixed(self) -> SwitchRow:
        return min(self.fixed, key=lambda row: row.jct_s)

    @property
    def worst_fixed(self) -> SwitchRow:
        return max(self.fixed, key=lambda row: row.jct_s)


def study(
    spec: SimSpec,
    cost: ModelCost,
    system: str,
    load: ShiftingLoad,
    settings: RoleSwitchSettings,
    switch_s: float,
    progress: Callable[[str], None],
) -> SwitchStudy:
    """All ratios of the spec's nodes; a changing cluster begins at the best fixed one, in the middle, at the worst."""
    shape, trajectories = spec.cluster, load.trajectories()
    num_nodes = shape.prefill_nodes + shape.decode_nodes
    base = replace(spec, workload=replace(spec.workload, agents=len(trajectories), aps=None))

    def divided(num_prefill: int) -> SimSpec:
        cluster = replace(shape, prefill_nodes=num_prefill, decode_nodes=num_nodes - num_prefill)
        return replace(base, cluster=cluster)

    fixed = []
    for num_prefill in range(1, num_nodes):
        done = simulate(divided(num_prefill), cost, system, trajectories)
        latencies = done.observer.histograms
        fixed.append(SwitchRow(num_prefill, done.observer.end_s, latencies["ttft"].mean, latencies["tpot"].mean))
        progress(f"fixed {num_prefill}P{num_nodes - num_prefill}D: {done.observer.end_s:.0f} s")
    result = SwitchStudy(num_nodes, fixed, [])
    for start in dict.fromkeys((result.best_fixed.num_prefill, num_nodes // 2, result.worst_fixed.num_prefill)):
        done, controller = prepare_switching(divided(start), cost, system, trajectories, settings, switch_s)
        done.run()
        latencies, end_s = done.observer.histograms, done.observer.end_s
        mean = (latencies["ttft"].mean, latencies["tpot"].mean)
        last = controller.count(Role.PREFILL)
        result.changing.append(SwitchRow(start, end_s, *mean, tuple(controller.changes), last))
        progress(f"changing from {start}P{num_nodes - start}D: {end_s:.0f} s, {len(controller.changes)} changes")
    return result

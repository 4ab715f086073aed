"""Small specs that tests vary: round numbers, a few agents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dualpath.scheduler.policy.cost import DecodeCost
from dualpath.sim.cost import ModelCost, PrefillCost
from dualpath.sim.simulation import Simulation, simulate
from dualpath.sim.spec import ClusterSpec, SchedulerSpec, SimSpec, WorkloadSpec
from dualpath.trace.trajectory import Round, Trajectory

COST = ModelCost(
    PrefillCost(base_s=0.05, token_s=4e-5, pair_s=3e-8, index_pair_s=2e-9, top_k=2048, group_token_s=1e-4),
    DecodeCost(base_s=0.02, per_request_s=1e-3),
    kv_bytes_per_token=50_000,
    num_layers=60,
)
# Computes next to nothing: what is left is how long the KV takes.
STORAGE_BOUND = ModelCost(PrefillCost(base_s=1e-5), DecodeCost(base_s=1e-5), kv_bytes_per_token=50_000, num_layers=60)


def small_spec(num_prefill: int = 1, num_decode: int = 2, **changes: dict[str, Any]) -> SimSpec:
    """``changes``: by table."""
    cluster = ClusterSpec(
        prefill_nodes=num_prefill,
        decode_nodes=num_decode,
        engines_per_node=2,
        prefill_kv_bytes=10_000_000_000,
        decode_kv_bytes=60_000_000_000,
    )
    spec = SimSpec(
        cluster=cluster,
        workload=WorkloadSpec(trace="synth:32K", agents=12, rounds=8),
        scheduler=SchedulerSpec(admission_s=0.05, handover_s=0.01),
    )
    return replace(spec, **{table: replace(getattr(spec, table), **values) for table, values in changes.items()})


def run(spec: SimSpec, system: str, cost: ModelCost = COST, trajectories: list[Trajectory] | None = None) -> Simulation:
    """Simulate; everything taken must have been given back."""
    done = simulate(spec, cost, system, trajectories)
    if spec.workload.aps is None:
        done.check_integrity()
    return done


def long_agents(num_agents: int, num_rounds: int = 6, first_tokens: int = 30_000) -> list[Trajectory]:
    """All alike: a long context at once, then short turns, so that reading is all they do."""
    rounds = (Round(first_tokens, 2), *[Round(64, 2)] * (num_rounds - 1))
    return [Trajectory(f"a{index}", rounds) for index in range(num_agents)]

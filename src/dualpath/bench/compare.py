"""The same rollout on one system after the other, each on a cluster of its own, and their JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from dualpath.bench.progress import RunProgress
from dualpath.bench.results import RunResult, as_json
from dualpath.bench.rollout import run_rollout
from dualpath.bench.workload import Script
from dualpath.gateway.backend import Backend

INVALID_SYSTEMS = frozenset({"oracle"})  # moves no KV, so its tokens mean nothing

OpenCluster = Callable[[str], AbstractAsyncContextManager[Backend]]  # system -> a fresh cluster, closed at the end


async def compare_rollouts(
    open_cluster: OpenCluster, systems: Sequence[str], scripts: Sequence[Script], progress: RunProgress
) -> AsyncIterator[RunResult]:
    """One run of all agents for each system, in this order; each as soon as its cluster has closed."""
    num_turns = sum(len(script.steps) for script in scripts)
    for system in systems:
        async with open_cluster(system) as backend:
            with progress.run(system, num_turns) as advance:
                run = await run_rollout(backend, system, scripts, advance)
        yield run


def report(
    settings: Mapping[str, Any], num_prefill: int, num_decode: int, hit_rate: float, runs: Sequence[RunResult]
) -> dict[str, Any]:
    """The rollout's JSON. ``pooled_over_prefill`` bounds the gain where reading is all that counts; ``hit_rate`` is
    that of a cache that never forgets, from the trace alone."""
    return {
        "settings": dict(settings),
        "systems": {run.system: as_json(run) for run in runs},
        "limits": {
            "pooled_over_prefill": (num_prefill + num_decode) / num_prefill,
            "infinite_cache_hit_rate": hit_rate,
        },
    }


def differing_systems(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Systems whose tokens are not the first valid one's. Oracle's are never expected to be."""
    valid = [name for name in systems if name not in INVALID_SYSTEMS]
    return [name for name in valid if systems[name]["tokens_sha256"] != systems[valid[0]]["tokens_sha256"]]

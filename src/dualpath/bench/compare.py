"""The same rollout on one system after the other, each on a cluster of its own, and their JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualpath.bench.rollout import run_rollout
from dualpath.bench.weight_steps import WeightSteps
from dualpath.bench.workload import Script
from dualpath.gateway.backend import Backend
from dualpath.report.progress import RunProgress
from dualpath.report.results import RunResult, as_json
from dualpath.report.updates import KINDS, WIPE, run_name

INVALID_SYSTEMS = frozenset({"oracle"})  # moves no KV, so its tokens mean nothing

OpenCluster = Callable[[str], AbstractAsyncContextManager[Backend]]  # system -> a fresh cluster, closed at the end


async def compare_rollouts(
    open_cluster: OpenCluster,
    systems: Sequence[str],
    scripts: Sequence[Script],
    progress: RunProgress,
    changes: Changes | None = None,
) -> AsyncIterator[RunResult]:
    """One run of all agents for each system, in this order; each as soon as its cluster has closed.

    ``changes``: of the weights; then there are three for each system.
    """
    num_turns = sum(len(script.steps) for script in scripts)
    for system, kind in ((system, kind) for system in systems for kind in (KINDS if changes is not None else (None,))):
        name = run_name(system, kind)
        async with open_cluster(system) as backend:
            with progress.run(name, num_turns) as advance:
                if kind is None or changes is None:
                    run = await run_rollout(backend, name, scripts, advance)
                else:
                    run = await _with_changes(changes, kind, backend, name, scripts, advance)
        yield run


@dataclass(frozen=True, slots=True)
class Changes:
    """Other weights after every so many turns. ``wipe`` empties the store of the cluster that is open."""

    steps: Sequence[Path]
    every: int
    wipe: Callable[[], Awaitable[None]]


async def _with_changes(
    changes: Changes,
    kind: str,
    backend: Backend,
    name: str,
    scripts: Sequence[Script],
    advance: Callable[[], None],
) -> RunResult:
    wipe = changes.wipe if kind == WIPE else None
    steps = WeightSteps(backend.control, changes.steps, changes.every, wipe)

    def turn() -> None:
        advance()
        steps.turn()

    async with steps.running():
        result = await run_rollout(backend, name, scripts, turn)
    return replace(result, update_s=steps.update_s)


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
    """Systems whose tokens are not the first valid one's. Oracle's are never expected to be, nor are those of runs in
    which weights change at moments of their own."""
    valid = [name for name in systems if name.partition(",")[0] not in INVALID_SYSTEMS and "," not in name]
    return [name for name in valid if systems[name]["tokens_sha256"] != systems[valid[0]]["tokens_sha256"]]

"""What ``dualpath sim validate`` does: the live embedded cluster and the simulator on the same agents, side by side.

For every shape and system a fresh cluster runs first, exactly as in ``bench rollout``; its sizes and limits become the
simulator's spec (``sim_embedded``), its model's costs are a profile's. What requests cost the host beside all that is
measured by one agent alone, on a trace of its own, once for each shape; the compared runs fit nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from dualpath.bench.cpu_use import CpuUse, cpu_use
from dualpath.bench.nic_watch import node_reads
from dualpath.bench.rollout import run_rollout
from dualpath.bench.run_rollout import ClusterOpener, load_agents, vocab_size
from dualpath.bench.settings import RolloutSettings, system_names
from dualpath.bench.workload import scripts_of, vocabulary
from dualpath.cluster.profile import Profile
from dualpath.core.errors import ConfigError
from dualpath.core.stats import ClusterStats
from dualpath.report.outputs import write_output
from dualpath.report.progress import RunProgress
from dualpath.report.results import as_json
from dualpath.scheduler.service import Service
from dualpath.sim.results import rollout_json
from dualpath.sim.simulation import simulate
from dualpath.sim.spec import SimSpec
from dualpath.sim.validation import Overhead, Row, compare, overhead
from dualpath.trace import Trajectory
from dualpath.validation.embedded_spec import describe, write_spec
from dualpath.validation.profile import profile_for
from dualpath.validation.report import print_comparison, print_verdict
from dualpath.validation.settings import ValidateSettings, for_shape, shapes

CALIBRATION_SYSTEM = "shorter"
NUM_SIMULATED = 5
NUDGE_S = 1e-3  # by which simulated runs differ in what a request costs the host: far less than live requests differ
QUIET_S = 1.0  # writes that have not moved on for so long, and for several blocks, have ended


@dataclass(frozen=True, slots=True)
class Live:
    """One live run."""

    entry: dict[str, Any]  # as in the rollout's JSON, with written bytes
    spec: SimSpec  # of its cluster, without overheads
    cpu: CpuUse


def run(settings: ValidateSettings) -> int:
    """Compare, print, write. Exit code 1 if something is further off than it may be."""
    console = Console()
    with profile_for(settings, console) as (profile, file):
        settings = replace(settings, model=replace(settings.model, profile=file))
        found = {name: _validate(for_shape(settings, name), settings, profile, console) for name in shapes(settings)}
    holds = all(one["holds"] for shape in found.values() for one in shape["systems"].values())
    print_verdict(console, found)
    if settings.output.json is not None:
        report = {"shapes": found, "holds": holds}
        write_output(settings.output.json, json.dumps(report, indent=1) + "\n")
    return 0 if holds else 1


def _validate(settings: RolloutSettings, whole: ValidateSettings, profile: Profile, console: Console) -> dict[str, Any]:
    """One shape."""
    trajectories = load_agents(settings)
    require_unshared(trajectories)
    name = f"{settings.cluster.prefill}P{settings.cluster.decode}D"
    cost = _calibrate(settings, profile, console)
    console.print(
        f"{name}: a request of one agent alone takes {cost.admission_s * 1e3:.1f} ms longer than simulated before its"
        f" first token, {cost.handover_s * 1e3:.1f} ms after it: counted in both for all",
        highlight=False,
    )
    systems: dict[str, Any] = {}
    spec: SimSpec | None = None
    for system in system_names(settings.workload.systems):
        lives = [
            asyncio.run(_live(settings, system, trajectories, profile, console)) for _ in range(whole.validation.repeat)
        ]
        spec = with_overhead(lives[0].spec, cost)
        simulated = [simulated_entry(one, system, trajectories) for one in nudged(spec)]
        rows = compare([live.entry for live in lives], simulated)
        print_comparison(console, f"{name} {system}", rows, lives[-1].cpu)
        systems[system] = _as_json(rows, lives, simulated)
    assert spec is not None
    if whole.output.write_spec is not None:
        write_spec(spec, whole.output.write_spec)
    return {"overhead": dataclasses.asdict(cost), "spec": dataclasses.asdict(spec), "systems": systems}


def nudged(spec: SimSpec) -> list[SimSpec]:
    """The spec, and others that differ from it by less than anybody can measure."""
    admission_s = spec.scheduler.admission_s
    return [
        replace(spec, scheduler=replace(spec.scheduler, admission_s=admission_s + index * NUDGE_S))
        for index in range(NUM_SIMULATED)
    ]


def _as_json(rows: Sequence[Row], lives: Sequence[Live], simulated: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "rows": [row.as_json() for row in rows],
        "holds": all(row.holds for row in rows),
        "real": [live.entry for live in lives],
        "simulated": simulated,
    }


def require_unshared(trajectories: Sequence[Trajectory]) -> None:
    """Raises ConfigError for agents that begin with the same prompt: the simulator gives each its own blocks."""
    if any(one.prefix is not None for one in trajectories):
        raise ConfigError("--trace: its agents share prompts, which the simulator does not know; choose another")


def simulated_entry(spec: SimSpec, system: str, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    return rollout_json(simulate(spec, spec.model.cost(), system, trajectories))


def with_overhead(spec: SimSpec, cost: Overhead) -> SimSpec:
    scheduler = replace(spec.scheduler, admission_s=cost.admission_s, handover_s=cost.handover_s)
    return replace(spec, scheduler=scheduler)


def _calibrate(settings: RolloutSettings, profile: Profile, console: Console) -> Overhead:
    """One agent alone, of another seed than the compared ones."""
    work = replace(settings.workload, agents=1, seed=settings.workload.seed + 1)
    alone = replace(settings, workload=work)
    trajectories = load_agents(alone)
    live = asyncio.run(_live(alone, CALIBRATION_SYSTEM, trajectories, profile, console))
    return overhead(live.entry, simulated_entry(live.spec, CALIBRATION_SYSTEM, trajectories))


async def _live(
    settings: RolloutSettings, system: str, trajectories: Sequence[Trajectory], profile: Profile, console: Console
) -> Live:
    """A run of ``bench rollout``, and what its storage NICs have written when all writes have ended."""
    vocab = vocabulary(vocab_size(settings.model.dir))
    scripts = scripts_of(trajectories, seed=settings.workload.seed, vocab=vocab)
    opener = ClusterOpener(settings, scripts, console)
    num_turns = sum(len(script.steps) for script in scripts)
    async with opener.open_cluster(system) as cluster:
        spec = describe(cluster, await cluster.service.stats(), settings, profile)
        with RunProgress(console).run(system, num_turns) as advance, cpu_use() as cpu:
            result = await run_rollout(cluster.service, system, scripts, advance)
        written = await _written(cluster.service, _block_s(spec))
    return Live({**as_json(result), "storage_write_bytes": written, "cpu": cpu.as_json()}, spec, cpu)


def _block_s(spec: SimSpec) -> float:
    """Of one block on the way to storage."""
    kv_bytes = spec.scheduler.block_tokens * spec.model.cost().kv_bytes_per_token
    return (kv_bytes + spec.cluster.block_header_bytes) / spec.cluster.storage_nic_bytes_per_s


async def _written(service: Service, block_s: float) -> dict[str, int]:
    """By node, once nothing more is written. A turn is over before its blocks are on storage."""
    before: ClusterStats | None = None
    while True:
        stats = await service.stats()
        if before is not None and _writes(stats) == _writes(before):
            return _writes(stats)
        before = stats
        await asyncio.sleep(max(QUIET_S, 4 * block_s))


def _writes(stats: ClusterStats) -> dict[str, int]:
    found = dict.fromkeys(node_reads(stats), 0)
    for engine in stats.engines:
        found[engine.node_id] += engine.storage_write_bytes
    return found

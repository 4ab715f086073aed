"""A running cluster's snapshot as a simulator's spec, and the changes that are tried on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

from dualpath.core.plan import Role
from dualpath.core.stats import ClusterFacts, ClusterStats, NodeStats
from dualpath.scheduler.policy.systems import SYSTEMS
from dualpath.sim.spec import ClusterSpec, SchedulerSpec, SimSpec

MEMORY_BYTES_PER_S = 5e9  # a compute network of unknown rate: copies in memory
T = TypeVar("T")
_UNIFORM = "the simulator has one kind of node; here they differ in"


def spec_of(stats: ClusterStats) -> tuple[SimSpec, str]:
    """The spec, and the system. Raises ValueError with the reason where a spec cannot say it, or data is missing."""
    facts = stats.facts
    if facts is None:
        raise ValueError("what the scheduler goes by is not known (the server is older than this command)")
    if facts.system not in SYSTEMS:
        raise ValueError(f"the simulator knows no --path {facts.system}; it has {', '.join(SYSTEMS)}")
    if stats.block_tokens is None or stats.block_bytes is None:
        raise ValueError("the size of a block is not known")
    return SimSpec(cluster=_cluster(stats, facts), scheduler=_scheduler(stats, facts)), facts.system


def _cluster(stats: ClusterStats, facts: ClusterFacts) -> ClusterSpec:
    assert stats.block_tokens is not None
    assert stats.block_bytes is not None
    per_token = stats.block_bytes // stats.block_tokens
    rate = _same("the rate of their storage NICs", [node.storage_nic_bytes_per_s for node in stats.nodes])
    if rate is None:
        raise ValueError("the rate of the storage NICs is not known (storage_nic_mbps)")
    engines = _same("their engines", [len(node.engines) for node in stats.nodes])
    slots = _same("their staging slots", [engine.staging_slots for engine in stats.engines])
    if not engines or not slots:
        raise ValueError("nodes or engines are not known")
    compute = min((n.compute_nic_bytes_per_s or MEMORY_BYTES_PER_S for n in stats.nodes), default=MEMORY_BYTES_PER_S)
    return ClusterSpec(
        prefill_nodes=_count(stats.nodes, Role.PREFILL),
        decode_nodes=_count(stats.nodes, Role.DECODE),
        engines_per_node=engines,
        prefill_group_engines=1,
        decode_group_engines=1,
        storage_nic_bytes_per_s=rate,
        compute_nic_bytes_per_s=compute,
        dram_bytes_per_s=max(2 * compute, 100e9 if compute > MEMORY_BYTES_PER_S else 0.0),
        staging_bytes=engines * slots * stats.block_bytes,
        prefill_kv_bytes=facts.prefill_kv_tokens * per_token,
        decode_kv_bytes=facts.decode_kv_tokens * per_token,
        prefill_workspace_tokens=facts.prefill_kv_tokens,
        block_header_bytes=facts.object_bytes - stats.block_bytes,
    )


def _scheduler(stats: ClusterStats, facts: ClusterFacts) -> SchedulerSpec:
    assert stats.block_tokens is not None
    return SchedulerSpec(
        systems="basic",
        block_tokens=stats.block_tokens,
        quota_s=facts.quota_s,
        alpha_tokens=facts.alpha_tokens,
        beta_tokens=facts.beta_tokens,
        fetch_interval_s=0.0,
        expected_output_tokens=facts.expected_output_tokens,
        memory="reserved",
        writes_hold_staging=True,
        max_batch_tokens=facts.max_batch_tokens,
    )


def changes(spec: SimSpec, system: str) -> Iterator[tuple[str, SimSpec, str]]:
    """(what is changed, the spec, the system), one thing each; what a change costs is not known here."""
    cluster, scheduler = spec.cluster, spec.scheduler
    twice: dict[str, dict[str, Any]] = {
        "storage NICs twice as fast": {"storage_nic_bytes_per_s": 2 * cluster.storage_nic_bytes_per_s},
        "one more prefill node": {"prefill_nodes": cluster.prefill_nodes + 1},
        "one more decode node": {"decode_nodes": cluster.decode_nodes + 1},
        "staging buffers twice as large": {"staging_bytes": 2 * cluster.staging_bytes},
        "decode memory twice as large": {"decode_kv_bytes": 2 * cluster.kv_bytes(Role.DECODE)},
        "compute network twice as fast": {"compute_nic_bytes_per_s": 2 * cluster.compute_nic_bytes_per_s},
    }
    for name, fields in twice.items():
        yield name, replace(spec, cluster=replace(cluster, **fields)), system
    if SYSTEMS[system].uses_quota:
        yield (
            "half the prefill quota",
            replace(spec, scheduler=replace(scheduler, quota_s=scheduler.quota_s / 2)),
            system,
        )
    if system != "split":
        yield "--path split", spec, "split"


def _same(what: str, values: list[T]) -> T | None:
    if len(set(values)) > 1:
        raise ValueError(f"{_UNIFORM} {what}")
    return values[0] if values else None


def _count(nodes: tuple[NodeStats, ...], role: Role) -> int:
    count = sum(node.role is role for node in nodes)
    if not count:
        raise ValueError(f"no {role.value} node is known")
    return count

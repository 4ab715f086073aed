"""A running embedded cluster as a simulator's spec: sizes as allocated, limits as the scheduler has them, a profile.

Nothing is estimated here but the compute network: on one machine it is memory copies, at the profile's rate, and a copy
reads and writes memory once each.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from dualpath.bench.settings import RolloutSettings
from dualpath.cluster.composition import ServingCluster
from dualpath.cluster.profile import Profile
from dualpath.config.serve import SchedulerConfig
from dualpath.core.errors import ConfigError
from dualpath.core.stats import ClusterStats
from dualpath.report.outputs import write_output
from dualpath.sim.cost import PrefillCost
from dualpath.sim.spec import ClusterSpec, ModelSpec, SchedulerSpec, SimSpec, WorkloadSpec
from dualpath.store.header import HEADER_BYTES


def describe(cluster: ServingCluster, stats: ClusterStats, settings: RolloutSettings, profile: Profile) -> SimSpec:
    """The spec of a started cluster and its workload. Raises ConfigError where a spec cannot say it."""
    assert settings.cluster.storage_nic_mbps is not None, "storage NICs need a rate"
    return SimSpec(
        cluster=_cluster(cluster, stats, settings, profile),
        model=_model(cluster, profile),
        workload=_workload(settings),
        scheduler=_scheduler(cluster, settings),
    )


def _cluster(cluster: ServingCluster, stats: ClusterStats, settings: RolloutSettings, profile: Profile) -> ClusterSpec:
    shape, nodes, geometry = settings.cluster, cluster.nodes, cluster.geometry
    assert shape.storage_nic_mbps is not None
    slots = {engine.staging_slots for engine in stats.engines}
    if len(slots) > 1:
        raise ConfigError(
            "--prefill-staging-bytes, --decode-staging-bytes: a spec has one size for all nodes, here they differ"
        )
    prefill_tokens = nodes.prefill_engines[0].info.device_kv_tokens
    decode_tokens = nodes.decode_engines[0].info.device_kv_tokens
    return ClusterSpec(
        prefill_nodes=shape.prefill,
        decode_nodes=shape.decode,
        engines_per_node=shape.engines_per_node,
        prefill_group_engines=1,
        decode_group_engines=1,
        storage_nic_bytes_per_s=shape.storage_nic_mbps * 1e6 / 8,
        compute_nic_bytes_per_s=profile.copy_bytes_per_s,
        dram_bytes_per_s=2 * profile.copy_bytes_per_s,
        staging_bytes=shape.engines_per_node * slots.pop() * geometry.full_block_bytes,
        prefill_kv_bytes=prefill_tokens * geometry.bytes_per_token,
        decode_kv_bytes=decode_tokens * geometry.bytes_per_token,
        prefill_workspace_tokens=prefill_tokens,
        block_header_bytes=HEADER_BYTES,
    )


def _model(cluster: ServingCluster, profile: Profile) -> ModelSpec:
    prefill, decode, geometry = PrefillCost.of(profile.prefill_cost), profile.decode_cost, cluster.geometry
    return ModelSpec(
        kv_bytes_per_token=geometry.bytes_per_token,
        num_layers=geometry.num_layers,
        prefill_base_s=prefill.base_s,
        prefill_pair_s=prefill.pair_s,
        prefill_group_token_s=prefill.group_token_s,
        decode_base_s=decode.base_s,
        decode_per_request_s=decode.per_request_s,
        decode_per_context_token_s=decode.per_context_token_s,
    )


def _workload(settings: RolloutSettings) -> WorkloadSpec:
    work = settings.workload
    return WorkloadSpec(
        trace=work.trace, agents=work.agents, rounds=work.rounds, scale=work.scale, think=work.think, seed=work.seed
    )


def _scheduler(cluster: ServingCluster, settings: RolloutSettings) -> SchedulerSpec:
    limits = cluster.nodes.scheduler
    return SchedulerSpec(
        systems=settings.workload.systems,
        block_tokens=cluster.geometry.block_tokens,
        quota_s=SchedulerConfig().prefill_quota_ms / 1e3,
        alpha_tokens=limits.alpha_tokens,
        beta_tokens=limits.beta_tokens,
        fetch_interval_s=0.0,
        expected_output_tokens=limits.expected_output_tokens,
        memory="reserved",
        writes_hold_staging=True,
        max_batch_tokens=settings.memory.prefill_batch_tokens,
    )


def write_spec(spec: SimSpec, file: Path) -> None:
    """TOML for ``dualpath sim run``: all settings that have a value. JSON's scalars and lists are TOML's, too."""
    lines = ["# An embedded cluster as dualpath sim validate found it."]
    for table, values in dataclasses.asdict(spec).items():
        lines += ["", f"[{table}]"]
        lines += [f"{name} = {json.dumps(value)}" for name, value in values.items() if value is not None]
    write_output(file, "\n".join(lines) + "\n")

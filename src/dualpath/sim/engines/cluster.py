"""A simulated cluster: the nodes and engines of a spec, wired together, all idle."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dualpath.core.ids import EngineId, NodeId
from dualpath.core.plan import Role
from dualpath.scheduler.policy.engine_load import GroupId, group_of
from dualpath.scheduler.policy.quota import ComputeQuota
from dualpath.scheduler.policy.systems import Assignment, SystemPolicy
from dualpath.sim.cost import ModelCost
from dualpath.sim.engines.collectives import Collectives
from dualpath.sim.engines.decode import DecodeClock, DecodeEngine
from dualpath.sim.engines.fifo_link import ComputeNic, FifoLink
from dualpath.sim.engines.node import Node, Staging, StorageNic
from dualpath.sim.engines.prefill import PrefillEngine, PrefillGroup
from dualpath.sim.spec import ClusterSpec, SimSpec


@dataclass(frozen=True, slots=True)
class Cluster:
    """Engines and nodes in order; names are those of the live system."""

    nodes: list[Node]
    prefill: list[PrefillEngine]
    decode: list[DecodeEngine]
    groups: list[PrefillGroup]
    clocks: list[DecodeClock]
    scopes: list[list[PrefillEngine]]  # that are looked at together
    decode_groups: list[tuple[GroupId, list[DecodeEngine]]]  # that share a private queue
    collectives: Collectives | None  # None: none cross compute NICs


def build(spec: SimSpec, cost: ModelCost, policy: SystemPolicy) -> Cluster:
    shape = spec.cluster
    nodes: list[Node] = []
    prefill: list[PrefillEngine] = []
    decode: list[DecodeEngine] = []
    prefill_tokens = shape.kv_bytes(Role.PREFILL) // cost.kv_bytes_per_token
    decode_tokens = shape.kv_bytes(Role.DECODE) // cost.kv_bytes_per_token
    for role, number in _places(shape):
        node = _node(shape, cost, NodeId(f"{role.value}-node{number}"), spec.output.window_s, policy.skips_io)
        nodes.append(node)
        for rank in range(shape.engines_per_node):
            name = EngineId(f"{role.value}{number}" + (f"-{rank}" if shape.engines_per_node > 1 else ""))
            nic = ComputeNic(math.inf if policy.skips_io else shape.compute_nic_bytes_per_s)
            if role is Role.PREFILL:
                prefill.append(PrefillEngine(name, node, nic, Staging(prefill_tokens), cost.kv_bytes_per_token))
            else:
                decode.append(DecodeEngine(name, node, nic, Staging(decode_tokens)))
    groups = _prefill_groups(spec, cost, policy, prefill)
    size = shape.decode_group_engines
    clocks = [DecodeClock(decode[i : i + size], cost.decode) for i in range(0, len(decode), size)]
    collectives = _collectives(shape, cost)
    for engine in decode:
        engine.collectives = None if policy.skips_io else collectives
    scopes, decode_groups = _scopes(spec, policy, groups), _decode_groups(policy, decode)
    return Cluster(nodes, prefill, decode, groups, clocks, scopes, decode_groups, collectives)


def _collectives(shape: ClusterSpec, cost: ModelCost) -> Collectives | None:
    found = (cost.prefill_collective_bytes, cost.decode_collective_bytes)
    return Collectives(shape.compute_nic_bytes_per_s, *found, shape.traffic_classes) if any(found) else None


def _places(shape: ClusterSpec) -> list[tuple[Role, int]]:
    return [
        (role, number)
        for role, count in ((Role.PREFILL, shape.prefill_nodes), (Role.DECODE, shape.decode_nodes))
        for number in range(count)
    ]


def _node(shape: ClusterSpec, cost: ModelCost, name: NodeId, window_s: float, skips_io: bool) -> Node:
    """Several storage NICs share every read, so they are one that is faster."""
    rate = math.inf if skips_io else shape.storage_nic_bytes_per_s * shape.storage_nics_per_node
    dram = math.inf if skips_io else shape.dram_bytes_per_s
    staging = Staging(shape.staging_bytes // cost.kv_bytes_per_token)
    return Node(name, StorageNic(rate, window_s), FifoLink(rate), FifoLink(dram), staging)


def _prefill_groups(
    spec: SimSpec, cost: ModelCost, policy: SystemPolicy, engines: list[PrefillEngine]
) -> list[PrefillGroup]:
    """Without the quota, batches are bounded by tokens and memory alone."""
    quota = ComputeQuota(cost.prefill, spec.scheduler.quota_s if policy.uses_quota else math.inf)
    layers = min(2, cost.num_layers) if policy.streams_layers else cost.num_layers
    kv_tokens = spec.cluster.kv_bytes(Role.PREFILL) * cost.num_layers // (layers * cost.kv_bytes_per_token)
    if policy.streams_layers and spec.cluster.prefill_workspace_tokens is not None:
        kv_tokens = spec.cluster.prefill_workspace_tokens
    size = spec.cluster.prefill_group
    return [
        PrefillGroup(
            index, engines[start : start + size], cost.prefill, quota, spec.scheduler.max_batch_tokens, kv_tokens
        )
        for index, start in enumerate(range(0, len(engines), size))
    ]


def _scopes(spec: SimSpec, policy: SystemPolicy, groups: list[PrefillGroup]) -> list[list[PrefillEngine]]:
    """A rotation goes over all engines; so does the live scheduler, which looks at all on every change."""
    if policy.prefill_choice is Assignment.ROUND_ROBIN or spec.scheduler.fetch_interval_s == 0:
        return [[engine for group in groups for engine in group.engines]]
    return [list(group.engines) for group in groups]


def _decode_groups(policy: SystemPolicy, engines: list[DecodeEngine]) -> list[tuple[GroupId, list[DecodeEngine]]]:
    """Decode engines with one private queue: those of a node; in turn, every engine has its own."""
    members: dict[GroupId, list[DecodeEngine]] = {}
    for engine in engines:
        alone = policy.decode_choice is Assignment.ROUND_ROBIN
        engine.group_id = GroupId(engine.engine_id) if alone else group_of(engine.node.name, Role.DECODE)
        members.setdefault(engine.group_id, []).append(engine)
    return list(members.items())

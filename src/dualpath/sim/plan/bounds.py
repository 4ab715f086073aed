"""Bounds: the least share of every resource that a workload takes of a cluster. Above 1 nothing needs simulating.

Everything follows from adding up means (requests per second times a request's demand) and is therefore a lower bound on
the simulator's use: no queueing, reads evenly over all NICs that may read. KV traffic is counted as in section 4.2 of
arXiv 2602.21548, hop by hop, but with new tokens' KV, which the paper's inequalities leave out.
"""

from __future__ import annotations

import math

from dualpath.core.plan import Role
from dualpath.scheduler.policy.systems import SYSTEMS
from dualpath.sim.cost import ModelCost
from dualpath.sim.plan.candidates import Candidate
from dualpath.sim.plan.demand import Demand
from dualpath.sim.spec import SimSpec

DUAL_PATHS = frozenset({"shorter", "split", "round_robin"})


def prefill_read_share(candidate: Candidate) -> float:
    """Of the hit bytes, those read on prefill nodes: all, or evenly over all nodes' NICs (section 4.2)."""
    path = SYSTEMS[candidate.system].path
    if path == "prefill":
        return 1.0
    return candidate.prefill_nodes / candidate.num_nodes if path in DUAL_PATHS else 0.0


def kv_utilisations(
    candidate: Candidate, spec: SimSpec, cost: ModelCost, demand: Demand, rate: float
) -> dict[str, float]:
    """Of NICs, by direction, and memory bandwidth, at ``rate`` requests per second."""
    shape, share = spec.cluster, prefill_read_share(candidate)
    own, far = demand.hit_tokens * share, demand.hit_tokens * (1 - share)  # hits read on the prefill and decode side
    new, prompt = demand.new_tokens, demand.prompt_tokens
    per_node = rate * cost.kv_bytes_per_token
    storage = per_node / (shape.storage_nics_per_node * shape.storage_nic_bytes_per_s)
    nic = per_node / (shape.engines_per_node * shape.compute_nic_bytes_per_s)
    dram = per_node / shape.dram_bytes_per_s
    written = new + demand.generate_tokens
    num_prefill, num_decode = candidate.prefill_nodes, candidate.decode_nodes
    return {
        "prefill storage NIC, read": storage * own / num_prefill,
        "decode storage NIC, read": storage * far / num_decode,
        "decode storage NIC, write": storage * written / num_decode,
        "prefill compute NIC, out": nic * (own + own + new) / num_prefill,  # buffer to device, device to decode
        "prefill compute NIC, in": nic * (own + far) / num_prefill,
        "decode compute NIC, out": nic * (far + prompt) / num_decode,
        "decode compute NIC, in": nic * (own + new + prompt) / num_decode,
        "prefill DRAM": dram * 2 * own / num_prefill,
        "decode DRAM": dram * (2 * far + own + new + prompt + written) / num_decode,
    }


def prefill_utilisation(candidate: Candidate, spec: SimSpec, cost: ModelCost, demand: Demand, rate: float) -> float:
    """Of prefill engines' time; a forward's base is shared by as many requests as quota and batch limit let in."""
    quota_s = spec.scheduler.quota_s if SYSTEMS[candidate.system].uses_quota else math.inf
    together = spec.scheduler.max_batch_tokens / max(demand.new_tokens, 1.0)
    if demand.attention_s > 0:
        together = min(together, quota_s / demand.attention_s)
    engine_s = demand.attention_s + cost.prefill.group_token_s * demand.new_tokens
    engine_s += cost.prefill.base_s / max(1.0, together)
    return rate * engine_s / (candidate.prefill_nodes * candidate.engines_per_node)


def decode_step_s(candidate: Candidate, cost: ModelCost, demand: Demand, rate: float) -> tuple[float, float]:
    """(length of a step, requests in an engine's batch) in the steady state; inf where there is none.

    Little's law: batch = rate * tokens * step(batch), with step(batch) = base + batch * per request.
    """
    tokens_per_s = rate * max(demand.generate_tokens - 1, 0) / (candidate.decode_nodes * candidate.engines_per_node)
    per_request_s = _per_request_s(cost, demand)
    if tokens_per_s * per_request_s >= 1:
        return math.inf, math.inf
    step_s = cost.decode.base_s / (1 - tokens_per_s * per_request_s)
    return max(step_s, cost.decode.step_s(1, 0)), tokens_per_s * step_s


def utilisations(candidate: Candidate, spec: SimSpec, cost: ModelCost, demand: Demand, rate: float) -> dict[str, float]:
    """Of every resource at ``rate`` requests per second; ``decode step`` is in units of the limit on it."""
    used = kv_utilisations(candidate, spec, cost, demand, rate)
    used["prefill compute"] = prefill_utilisation(candidate, spec, cost, demand, rate)
    step_s, batch = decode_step_s(candidate, cost, demand, rate)
    used["decode step"] = step_s / spec.workload.tpot_slo_s
    kv_tokens = spec.cluster.kv_bytes(Role.DECODE) / cost.kv_bytes_per_token
    used["decode HBM"] = batch * (demand.prompt_tokens + demand.generate_tokens) / kv_tokens
    return used


def least_job_s(candidate: Candidate, spec: SimSpec, cost: ModelCost, demand: Demand, num_agents: int) -> float:
    """All agents at once cannot end before the busiest resource has done its work, nor before one agent's turns."""
    num_requests = num_agents * demand.requests_per_agent
    busy = kv_utilisations(candidate, spec, cost, demand, 1.0)
    busy["prefill compute"] = prefill_utilisation(candidate, spec, cost, demand, 1.0)
    decode_s = max(demand.generate_tokens - 1, 0) * _per_request_s(cost, demand)
    busy["decode compute"] = decode_s / (candidate.decode_nodes * candidate.engines_per_node)
    return max(num_requests * max(busy.values()), demand.requests_per_agent * turn_s(candidate, cost, demand))


def turn_s(candidate: Candidate, cost: ModelCost, demand: Demand) -> float:
    """A mean turn on an idle cluster: read, forward, decode and the wait before it."""
    rate = candidate.snics * candidate.snic_gbps * 1e9 / 8
    read_s = demand.hit_tokens * cost.kv_bytes_per_token / rate
    step_s = cost.decode.step_s(1, round(demand.prompt_tokens))
    return read_s + cost.prefill.base_s + demand.attention_s + demand.generate_tokens * step_s + demand.think_s


def _per_request_s(cost: ModelCost, demand: Demand) -> float:
    """What a request of mean length adds to a step."""
    context = demand.prompt_tokens + demand.generate_tokens / 2
    return cost.decode.per_request_s + cost.decode.per_context_token_s * context

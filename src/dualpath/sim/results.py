"""What a simulation comes to, as JSON: the keys of ``dualpath bench``'s results, and what only a simulator can see."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from dualpath.core.plan import Direction, Role
from dualpath.report.summary import PERCENTILES, snic_max_avg
from dualpath.sim.observer import LATENCIES, NUM_PARTS, PHASES
from dualpath.sim.simulation import Simulation

FIRST_PART = 0.05  # of the run, for the balance of attention time (arXiv 2602.21548, section 7.4)
GROWTH, GROWTH_OF_LIMIT = 1.5, 0.1  # as ``bench.serving``: what counts as a queue that grows


def rollout_json(done: Simulation) -> dict[str, Any]:
    """One system's entry, as in ``bench rollout``."""
    seen, jct_s = done.observer, done.observer.end_s
    return {
        "jct_s": jct_s,
        **_counts(done),
        **_traffic(done),
        **_latencies(done),
        "prompt_tokens_per_s": seen.prompt_tokens / jct_s if jct_s else 0.0,
        "generated_tokens_per_s": seen.generated_tokens / jct_s if jct_s else 0.0,
        "retries": seen.num_resent,
        "path_shares": _path_shares(done),
        "side_read_bytes": dict(done.life.reader.side_bytes),
        **_simulated(done),
    }


def serving_json(done: Simulation) -> dict[str, Any]:
    """One rate's point, as in ``bench serving``; counted are requests that were sent within the window."""
    seen, work = done.observer, done.spec.workload
    latencies = _latencies(done)
    steady = is_steady(done)
    ttft_s, tpot_s = latencies["ttft_s"].get("mean"), latencies["tpot_s"].get("mean", 0.0)
    within = ttft_s is not None and ttft_s <= work.ttft_slo_s and tpot_s <= work.tpot_slo_s
    return {
        "aps": work.aps,
        **_counts(done),
        "without_first_token": seen.num_without_token,
        "steady": steady,
        "gave_up_early": False,
        "meets_slo": steady and within,
        **latencies,
        "agents_done": seen.num_agents_done,
        "agents": len(done.agents),
        "agent_jct_s": seen.agents_s / seen.num_agents_timed if seen.num_agents_timed else None,
        **_traffic(done),
        "path_shares": _path_shares(done),
        **_simulated(done),
    }


def is_steady(done: Simulation) -> bool:
    """False if the mean time to first token grows from quarter to quarter of the window, by much."""
    seen = done.observer
    if min(seen.part_requests) == 0:
        return True
    means = [seen.part_ttft_s[part] / seen.part_requests[part] for part in range(NUM_PARTS)]
    grows = all(after > before for before, after in itertools.pairwise(means))
    is_much = means[-1] > GROWTH * means[0] and means[-1] - means[0] > GROWTH_OF_LIMIT * done.spec.workload.ttft_slo_s
    return not (grows and is_much)


def _counts(done: Simulation) -> dict[str, Any]:
    seen = done.observer
    return {
        "requests": seen.num_requests,
        "prompt_tokens": seen.prompt_tokens,
        "hit_tokens": seen.hit_tokens,
        "generated_tokens": seen.generated_tokens,
        "hit_rate": seen.hit_tokens / seen.prompt_tokens if seen.prompt_tokens else 0.0,
    }


def _traffic(done: Simulation) -> dict[str, Any]:
    seen, size = done.observer, done.cost.kv_bytes_per_token
    length = max((len(node.snic.windows) for node in done.cluster.nodes), default=0)
    series: dict[str, list[float]] = {node.name: _padded(node.snic.windows, length) for node in done.cluster.nodes}
    return {
        "storage_read_bytes": {node.name: node.snic.num_bytes for node in done.cluster.nodes},
        "storage_write_bytes": {node.name: node.store_writes.num_bytes for node in done.cluster.nodes},
        "kv_transfer_bytes": {
            Direction.DECODE_TO_PREFILL.value: seen.moved.pulled * size,
            Direction.PREFILL_TO_DECODE.value: seen.moved.pushed * size,
        },
        "snic_max_avg": snic_max_avg(series),
        "nic_series": series,
    }


def _padded(windows: list[int], length: int) -> list[float]:
    return [*map(float, windows), *[0.0] * (length - len(windows))]


def _latencies(done: Simulation) -> dict[str, Any]:
    histograms = done.observer.histograms
    phases = {name: histograms[name].summary((50, 99)) for name in PHASES}
    return {
        **{f"{name}_s": histograms[name].summary(PERCENTILES) for name in LATENCIES},
        "phases_s": {name: summary for name, summary in phases.items() if summary},
    }


def _path_shares(done: Simulation) -> dict[str, float]:
    counts = done.life.reader.path_counts
    total = sum(counts.values())
    return {path: count / total for path, count in counts.items() if count}


def _simulated(done: Simulation) -> dict[str, Any]:
    seen, size = done.observer, done.cost.kv_bytes_per_token
    updates = done.life.updates
    return {
        "weight_updates": 0 if updates is None else updates.num_updates,
        "evicted_tokens": done.life.storage.evicted_tokens,
        "utilisation": utilisation(done),
        "working_set_bytes": {"mean": seen.context.mean(seen.end_s) * size, "peak": seen.context.peak * size},
        "attention_max_avg": attention_max_avg(done, FIRST_PART),
        "attention_max_avg_all": attention_max_avg(done, 1.0),
        "staging_peak_tokens": {node.name: node.staging.peak_tokens for node in done.cluster.nodes},
        "forwards": sum(group.num_forwards for group in done.cluster.groups),
        "events": done.agenda.num_fired,
    }


def utilisation(done: Simulation) -> dict[str, dict[str, float]]:
    """Share of the run that each kind of resource was busy: of all of a kind together, by role."""
    run_s = done.observer.end_s
    found: dict[str, dict[str, float]] = {}
    if run_s <= 0:
        return found
    for role in Role:
        nodes = [node for node in done.cluster.nodes if node.name.startswith(role.value)]
        engines = done.cluster.prefill if role is Role.PREFILL else done.cluster.decode
        computing = done.cluster.groups if role is Role.PREFILL else done.cluster.clocks
        found[role.value] = {
            "storage_read": _mean([node.snic.busy_s for node in nodes]) / run_s,
            "storage_write": _mean([node.store_writes.busy_s for node in nodes]) / run_s,
            "compute_nic_out": _mean([engine.nic.out.busy_s for engine in engines]) / run_s,
            "compute_nic_into": _mean([engine.nic.into.busy_s for engine in engines]) / run_s,
            "dram": _mean([node.dram.busy_s for node in nodes]) / run_s,
            "compute": _mean([one.busy_s for one in computing]) / run_s,
        }
    return found


def attention_max_avg(done: Simulation, fraction: float) -> float | None:
    """Longest attention time of a forward's engines over their mean, by time, in the first ``fraction`` of the run."""
    rows = np.frombuffer(done.observer.forwards, dtype=np.float64).reshape(-1, 4)
    rows = rows[rows[:, 0] <= fraction * done.observer.end_s]
    total = float((rows[:, 2] / rows[:, 3]).sum())
    return float(rows[:, 1].sum()) / total if total > 0 else None


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)

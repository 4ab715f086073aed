"""Section 4.2 by simulation: as P/D leaves the bottleneck-free range, a compute NIC or DRAM is fuller than storage.

Compute costs next to nothing here, so that everything waits for links. Each resource's use is divided by that of the
storage NICs: above 1 it saturates before them. The closed forms (``sim.bottleneck``) say the same number.
"""

from __future__ import annotations

from dualpath.core.plan import Role
from dualpath.sim.bottleneck import NodeShape, Resource, binding_resource, bottleneck_free_range, utilisations
from dualpath.sim.paper.experiment import Experiment, Outcomes
from dualpath.sim.paper.rows import Lines, Report, Row
from dualpath.sim.paper.run import Outcome, Run, Setting

NODE = NodeShape()
POINTS = ((1, 9), (1, 4), (1, 1), (2, 1), (4, 1), (5, 1))
AGENTS_PER_NODE = 32
FREE: tuple[Setting, ...] = (
    ("model.prefill_base_s", 1e-4),
    *((f"model.{name}", 0.0) for name in ("prefill_token_s", "prefill_pair_s", "prefill_index_pair_s")),
    ("model.prefill_group_token_s", 0.0),
    ("model.decode_base_s", 1e-5),
    ("model.decode_per_request_s", 0.0),
    *((f"scheduler.{name}", 0.0) for name in ("admission_s", "handover_s")),
    ("scheduler.fetch_interval_s", 1e-3),
    ("scheduler.quota_s", 1e3),
    ("cluster.staging_bytes", 10**13),
    ("cluster.decode_kv_bytes", 10**13),
    ("workload.rounds", 25),
    ("workload.append_scale", 0.25),
    ("workload.generate_scale", 0.25),
)
KEYS = {
    Resource.PREFILL_CNIC_READ: (Role.PREFILL, "compute_nic_out"),
    Resource.PREFILL_CNIC_WRITE: (Role.PREFILL, "compute_nic_into"),
    Resource.DECODE_CNIC_READ: (Role.DECODE, "compute_nic_out"),
    Resource.DECODE_CNIC_WRITE: (Role.DECODE, "compute_nic_into"),
    Resource.PREFILL_DRAM: (Role.PREFILL, "dram"),
    Resource.DECODE_DRAM: (Role.DECODE, "dram"),
}


def _run(nodes: tuple[int, int]) -> Run:
    return Run("660B", "split", *nodes, agents=AGENTS_PER_NODE * sum(nodes), settings=FREE)


def relative_use(outcome: Outcome, nodes: tuple[int, int]) -> dict[Resource, float]:
    """Simulated use of each resource over the mean use of all storage NICs."""
    used = outcome.utilisation
    assert used is not None
    reads = [used[role.value]["storage_read"] for role in (Role.PREFILL, Role.DECODE)]
    storage = (nodes[0] * reads[0] + nodes[1] * reads[1]) / sum(nodes)
    return {Resource.STORAGE_NIC: 1.0, **{r: used[role.value][key] / storage for r, (role, key) in KEYS.items()}}


def _report(outcomes: Outcomes, _: bool) -> Report:
    simulated = {nodes: relative_use(outcomes[_run(nodes)], nodes) for nodes in POINTS}
    limits = bottleneck_free_range(NODE)
    rows = [
        Row("bottleneck_range.low", "lowest P/D without a bottleneck", "", limits.low,
            1 / _crossing({d / p: simulated[p, d][limits.low_limit] for p, d in ((1, 4), (1, 9))}), False,
            f"simulated: where the {limits.low_limit.value} is as full as the storage NICs"),
        Row("bottleneck_range.high", "highest P/D without a bottleneck", "", limits.high,
            _crossing({p / d: simulated[p, d][limits.high_limit] for p, d in ((2, 1), (4, 1), (5, 1))}), False,
            f"simulated: where the {limits.high_limit.value} is as full as the storage NICs"),
    ]  # fmt: skip
    rows += [_binding_row(nodes, used) for nodes, used in simulated.items()]
    ratios = {nodes: nodes[0] / nodes[1] for nodes in POINTS}
    closed = {r.value: [(ratios[n], utilisations(*n, NODE)[r]) for n in POINTS] for r in KEYS}
    ours = {r.value: [(ratios[n], simulated[n][r]) for n in POINTS] for r in KEYS}
    title = "Use of each resource over that of the storage NICs (left: closed forms)"
    return Report(rows, [Lines(title, "P/D", "use / storage NIC's", closed, ours, 1.0)])


def _binding_row(nodes: tuple[int, int], used: dict[Resource, float]) -> Row:
    """The fullest resource by the closed forms, and how full it is in the simulation."""
    closed = utilisations(*nodes, NODE)
    binding = binding_resource(*nodes, NODE)
    others = {resource: value for resource, value in closed.items() if resource is not Resource.STORAGE_NIC}
    fullest = max(others, key=lambda resource: others[resource])
    ours = max(KEYS, key=lambda resource: used[resource])
    first = ours if used[ours] > 1 else Resource.STORAGE_NIC
    is_both = first in KEYS and used[binding] > 1
    verdict = "agree" if first is binding else "both are fuller than the storage NIC" if is_both else "differ"
    text = f"saturates first: {binding.value} by the closed forms, {first.value} in the simulation ({verdict})"
    what = f"{nodes[0]}P{nodes[1]}D: {fullest.value} / storage NIC"
    return Row(f"bottleneck_range.{nodes[0]}P{nodes[1]}D", what, "", closed[fullest], used[fullest], False, text)


def _crossing(points: dict[float, float]) -> float:
    """Where the straight line through the points, by least squares, is 1: each load is linear in P/D or in D/P."""
    mean_x, mean_y = sum(points) / len(points), sum(points.values()) / len(points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points.items()) / sum((x - mean_x) ** 2 for x in points)
    return mean_x + (1 - mean_y) / slope


EXPERIMENT = Experiment(
    "bottleneck_range", "Section 4.2: bottleneck-free range", lambda _: [_run(nodes) for nodes in POINTS], _report
)

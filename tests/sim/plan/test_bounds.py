"""The planner's bounds: the paper's inequalities where new tokens vanish, and never above what the simulator uses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.sim.clusters import COST, small_spec
from tests.sim.plan.specs import planned_spec

from dualpath.sim import bottleneck
from dualpath.sim.bottleneck import NodeShape, Resource
from dualpath.sim.plan import bounds
from dualpath.sim.plan.candidates import Candidate
from dualpath.sim.plan.demand import Demand, demand_of
from dualpath.sim.plan.evaluate import evaluate
from dualpath.sim.plan.question import Question, Space

HITS_ONLY = Demand(10_000.0, 10_000.0, 0.0, 0.0, 0.0, 10.0, 10_000.0, 10_000)
NAMES = {
    "prefill storage NIC, read": Resource.STORAGE_NIC,
    "prefill compute NIC, out": Resource.PREFILL_CNIC_READ,
    "prefill compute NIC, in": Resource.PREFILL_CNIC_WRITE,
    "decode compute NIC, out": Resource.DECODE_CNIC_READ,
    "decode compute NIC, in": Resource.DECODE_CNIC_WRITE,
    "prefill DRAM": Resource.PREFILL_DRAM,
    "decode DRAM": Resource.DECODE_DRAM,
}


@pytest.mark.parametrize(("num_prefill", "num_decode"), [(1, 1), (2, 4), (7, 2), (1, 8)])
def test_without_new_tokens_bounds_are_the_papers_inequalities(num_prefill: int, num_decode: int) -> None:
    candidate = Candidate("shorter", num_prefill, num_decode, 8, 8, 1, 400.0, 80_000_000_000)
    spec = candidate.spec(small_spec())
    full_rate = (num_prefill + num_decode) * 50e9 / (HITS_ONLY.hit_tokens * COST.kv_bytes_per_token)
    ours = bounds.kv_utilisations(candidate, spec, COST, HITS_ONLY, full_rate)
    paper = bottleneck.utilisations(num_prefill, num_decode, NodeShape())
    for name, resource in NAMES.items():
        assert ours[name] == pytest.approx(paper[resource]), name


def test_basic_reads_on_prefill_nodes_only() -> None:
    basic = Candidate("basic", 1, 3, 8, 8, 1, 400.0, 1)
    both = replace(basic, system="split")
    spec = basic.spec(small_spec())
    one = bounds.kv_utilisations(basic, spec, COST, HITS_ONLY, 1.0)
    other = bounds.kv_utilisations(both, spec, COST, HITS_ONLY, 1.0)
    assert one["decode storage NIC, read"] == 0
    assert one["prefill storage NIC, read"] == pytest.approx(4 * other["prefill storage NIC, read"])


def test_a_job_never_ends_before_its_bound() -> None:
    base = planned_spec(workload={"agents": 20, "rounds": 10})
    cost = base.model.cost()
    question = Question(base=base, space=Space(engines_per_node=2))
    for prefill, decode in ((1, 1), (1, 3), (3, 1)):
        candidate = Candidate("shorter", prefill, decode, 2, 2, 1, 20.0, 80_000_000_000)
        outcome = evaluate(question, candidate, seed=0)
        demand = demand_of(question.trajectories(base.workload, 20), 64, cost.prefill)
        spec = candidate.spec(base)
        assert outcome.jct_s >= bounds.least_job_s(candidate, spec, cost, demand, 20)

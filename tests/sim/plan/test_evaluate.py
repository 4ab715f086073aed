"""What a candidate is simulated with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.sim.plan.specs import planned_spec

from dualpath.sim.plan import evaluate
from dualpath.sim.plan.candidates import Candidate
from dualpath.sim.plan.question import Question, Space
from dualpath.sim.spec import SimSpec

CANDIDATE = Candidate("split", 4, 8, 2, 2, 1, 400.0, 10**12)


@pytest.mark.parametrize("workload", [{"agents": 400}, {"aps": 0.4}])
def test_a_share_of_the_nodes_gets_the_same_share_of_all_that_is_the_whole_clusters(workload: dict[str, Any]) -> None:
    base = planned_spec(workload=workload, cluster={"store_bytes": 10**12})
    if base.workload.aps is None:
        base = replace(base, updates=replace(base.updates, every=200))

    def spec(scale: int) -> SimSpec:
        question = Question(base, Space(engines_per_node=2))
        demand, cost, _ = evaluate.for_bounds(question, CANDIDATE)
        return evaluate._spec(question, CANDIDATE, demand, cost, scale, 7, 60.0)

    whole, part = spec(1), spec(4)
    assert (part.cluster.prefill_nodes, part.cluster.decode_nodes) == (1, 2)
    assert (whole.cluster.store_bytes, part.cluster.store_bytes) == (10**12, 10**12 // 4)
    if base.workload.aps is None:
        assert (whole.workload.agents, part.workload.agents) == (400, 100)
        assert (whole.updates.every, part.updates.every) == (200, 50)
    else:
        assert (whole.workload.aps, part.workload.aps) == (0.4, 0.1)

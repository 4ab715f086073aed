"""One policy, two worlds: what is changed in ``dualpath.scheduler`` changes the live system and the simulator."""

from __future__ import annotations

import pytest
from tests.scheduler.cluster import cluster
from tests.scheduler.fixtures import BLOCK, make_request
from tests.scheduler.virtual_time import run_virtual
from tests.sim.clusters import run, small_spec

from dualpath.core.plan import ReadPlan
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.path_choice import PATH_POLICIES, PathQuestion

BLOCKS = 4


def live_share() -> float:
    """Of the hit bytes, those read on the decode side: one request on idle engines."""
    seen: dict[str, int] = {}

    async def scenario() -> None:
        async with cluster(config=SchedulerConfig(path_policy="shorter")) as c:
            request = make_request(num_prompt=BLOCKS * BLOCK + 1)
            c.store_prompt(request.prompt_token_ids)
            await c.run(request)
            seen.update(c.record(request).storage_read_bytes)

    run_virtual(scenario())
    return seen["decode"] / sum(seen.values())


def simulated_share() -> float:
    sides = run(small_spec(workload={"agents": 1}), "shorter").life.reader.side_bytes
    return sides["decode"] / sum(sides.values())


def test_a_change_of_policy_changes_both_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert live_share() == simulated_share() == 0.0, "idle queues are equally short: the prefill side reads"

    def mostly_decode(question: PathQuestion) -> ReadPlan:
        return ReadPlan(question.num_hit_blocks, question.num_hit_blocks // 4)

    monkeypatch.setitem(PATH_POLICIES, "shorter", mostly_decode)  # type: ignore[arg-type]
    assert live_share() == 0.75
    assert simulated_share() == pytest.approx(0.75, abs=0.01)

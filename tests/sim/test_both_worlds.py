"""One policy, two worlds: what is changed in ``dualpath.scheduler`` changes the live system and the simulator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pytest
from tests.scheduler.cluster import cluster
from tests.scheduler.fixtures import BLOCK, make_request
from tests.scheduler.virtual_time import run_virtual
from tests.sim.clusters import run, small_spec

from dualpath.core.ids import EngineId
from dualpath.core.plan import ReadPlan
from dualpath.scheduler import decode_choice, prefill_choice
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.decode_choice import GroupLoads
from dualpath.scheduler.path_choice import PATH_POLICIES, PathQuestion
from dualpath.scheduler.snapshot import EngineLoad

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


def live_engines() -> tuple[str, str]:
    """Which of two prefill and of two decode engines one request gets, all of them idle."""
    found: list[tuple[str, str]] = []

    async def scenario() -> None:
        async with cluster(prefill=2, decode=2) as c:
            request = make_request(num_prompt=BLOCK)
            await c.run(request)
            record = c.record(request)
            found.append((str(record.prefill_engine), str(record.decode_engine)))

    run_virtual(scenario())
    return found[0]


def simulated_engines() -> tuple[list[int], list[int]]:
    """The same for one agent's requests: indices of the engines that any KV came to."""
    done = run(small_spec(1, 1, workload={"agents": 1}), "shorter").cluster
    return tuple([i for i, one in enumerate(kind) if one.nic.into.num_bytes] for kind in (done.prefill, done.decode))  # type: ignore[return-value]


def test_a_change_of_engine_choice_changes_both_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert live_engines() == ("p0", "d0")
    assert simulated_engines() == ([0], [0])

    def last(lengths: Iterable[int], engines: Sequence[EngineLoad], _limits: object = None) -> Iterator[EngineId]:
        return (engines[-1].engine_id for _ in lengths)

    monkeypatch.setattr(prefill_choice, "assign_prefill", last)
    monkeypatch.setattr(decode_choice, "assign_decode", last)
    monkeypatch.setattr(GroupLoads, "choose", lambda self: self._names[-1])
    assert live_engines() == ("p1", "d1")
    assert simulated_engines() == ([1], [1])

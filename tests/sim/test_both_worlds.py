"""One policy, two worlds: what is changed in ``dualpath.scheduler`` changes the live system and the simulator."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

import pytest
from tests.scheduler.cluster import cluster
from tests.scheduler.fixtures import BLOCK, make_request
from tests.scheduler.virtual_time import run_virtual
from tests.sim.clusters import run, small_spec

from dualpath.core.ids import BlockKey, EngineId
from dualpath.core.plan import ReadPlan
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.policy import decode_choice
from dualpath.scheduler.policy.engine_load import EngineLoad
from dualpath.scheduler.policy.least_loaded import LeastLoaded
from dualpath.scheduler.policy.path_choice import PATH_POLICIES, PathQuestion
from dualpath.sim.requests.agent import Agent
from dualpath.sim.requests.storage import Storage
from dualpath.store.index import BlockIndex
from dualpath.trace.trajectory import Round

BLOCKS = 4
NUM_AGENTS, CAPACITY_BLOCKS = 4, 20


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

    monkeypatch.setattr(decode_choice, "assign_decode", last)
    monkeypatch.setattr(LeastLoaded, "choose", lambda self: self.names[-1])
    assert live_engines() == ("p1", "d1")
    assert simulated_engines() == ([1], [1])


class BothStores:
    """The live index and the simulator's storage, with the same blocks of every agent for each weights."""

    def __init__(self) -> None:
        self.agents = [Agent(number, (Round(1, 1),)) for number in range(NUM_AGENTS)]
        self.simulated = Storage(self.agents, CAPACITY_BLOCKS * BLOCK)
        self.index = BlockIndex(1, namespace_digest=b"0")
        self.weights = 0

    def use_weights(self, number: int) -> None:
        self.weights = number
        self.simulated.use_weights(number)
        self.index.use_namespace(str(number).encode())

    def grow(self, number: int, num_blocks: int) -> None:
        agent = self.agents[number]
        before = agent.chain.stored // BLOCK
        keys = self.keys(number)[: before + num_blocks]
        for at in range(before, before + num_blocks):
            assert self.index.begin_write(keys[at], keys[at - 1] if at else None)
            self.index.publish(keys[at])
        self.index.touch(keys[-1])
        self.index.deleted(self.index.evict_to(CAPACITY_BLOCKS))
        self.simulated.grow(agent, (before + num_blocks) * BLOCK)
        self.simulated.end(agent)
        self.simulated.check_integrity()

    def keys(self, number: int) -> list[BlockKey]:
        return [BlockKey(f"{self.weights}-{number}-{at}".encode()) for at in range(100)]

    def known(self) -> list[tuple[int, int]]:
        """Blocks of each agent, live and simulated."""
        return [(self.index.match(self.keys(agent.index)), agent.chain.stored // BLOCK) for agent in self.agents]


@pytest.mark.parametrize("seed", range(20))
def test_both_worlds_evict_the_same_blocks(seed: int) -> None:
    dice, stores = random.Random(seed), BothStores()
    for _ in range(60):
        if dice.random() < 0.1:
            stores.use_weights(dice.randrange(3))
        else:
            stores.grow(dice.randrange(NUM_AGENTS), dice.randint(1, 5))
        assert all(live == simulated for live, simulated in stores.known())
    assert stores.simulated.evicted_tokens > 0
    for number in range(3):
        stores.use_weights(number)
        assert all(live == simulated for live, simulated in stores.known())

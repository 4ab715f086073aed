"""A minute's replay against the truth: what was recorded is itself simulated, and so is what it would have been."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.plan import Role
from dualpath.core.request import RequestRecord
from dualpath.core.stats import ClusterFacts, ClusterStats, EngineStats, NodeStats
from dualpath.scheduler.policy.cost import DecodeCost
from dualpath.sim.cost import ModelCost, PrefillCost
from dualpath.sim.observer import PHASES
from dualpath.sim.replay import costs
from dualpath.sim.replay.costs import fit_costs
from dualpath.sim.replay.minute import what_if
from dualpath.sim.replay.sessions import sessions_of
from dualpath.sim.replay.spec import spec_of
from dualpath.sim.simulation import Simulation, prepare
from dualpath.trace.load import load_trace
from dualpath.trace.trajectory import Trajectory

BLOCK, PER_TOKEN, BEGIN_S = 64, 1000, 1_700_000_000.0
COST = ModelCost(PrefillCost(0.01, group_token_s=2e-5), DecodeCost(0.01, 0.001), PER_TOKEN, 8)


def stats(system: str, nic: float = 2e6, slots: int = 3000, prefill: int = 1, decode: int = 1) -> ClusterStats:
    nodes, engines = [], []
    for role, count in ((Role.PREFILL, prefill), (Role.DECODE, decode)):
        for number in range(count):
            name, node = EngineId(f"{role.value}{number}"), NodeId(f"{role.value}-node{number}")
            nodes.append(NodeStats(node, role, (name,), storage_nic_bytes_per_s=nic, compute_nic_bytes_per_s=1e9))
            engines.append(EngineStats(name, node, role, staging_slots=slots))
    facts = ClusterFacts(system, 8, BLOCK * PER_TOKEN, 10**6, 10**6, 256, 0.3, 8192, 50_000, 200_000)
    return ClusterStats(
        tuple(engines), nodes=tuple(nodes), block_tokens=BLOCK, block_bytes=BLOCK * PER_TOKEN, facts=facts
    )


@pytest.fixture(scope="module")
def agents() -> list[Trajectory]:
    return load_trace("synth:64K", agents=8, rounds=8, scale=0.05, seed=3)


class _Ignored:
    def span(self, *_: Any) -> None: ...


def run(cluster: ClusterStats, system: str, agents: Sequence[Trajectory]) -> tuple[list[RequestRecord], Simulation]:
    """Records as a server would have them, of a simulated one."""
    spec, _ = spec_of(cluster)
    done = prepare(replace(spec, workload=replace(spec.workload, agents=len(agents))), COST, system, agents)
    records: list[RequestRecord] = []
    last: dict[int, str] = {}

    def record(request: Any, moments_s: tuple[float, ...]) -> None:
        agent = request.agent.index
        found = RequestRecord(
            RequestId(f"{agent}-{request.prompt}"),
            BEGIN_S + moments_s[0],
            request.prompt,
            request.hit,
            request.generate,
            prefill_engine=request.prefill.engine_id,
            decode_engine=request.decode.engine_id,
            outcome="finished",
            follows=last.get(agent),
            ttft_s=request.first_token_s - moments_s[0],
            total_s=moments_s[-1] - moments_s[0],
            phases_s={p: b - a for p, a, b in zip(PHASES, moments_s[:-1], moments_s[1:], strict=True)},
        )
        last[agent] = found.request_id
        records.append(found)

    done.observer.trace = _Ignored()  # type: ignore[assignment]
    done.observer._trace_request = record  # type: ignore[method-assign]
    done.run()
    return records, done


def with_stalls(cluster: ClusterStats, records: Sequence[RequestRecord]) -> ClusterStats:
    """What forwards took beside what they computed, as engines count it."""
    forwards = [sample for spans in costs._by_engine(records, Role.PREFILL) for sample in costs._forwards(spans)]
    forward_s = sum(seconds for *_, seconds in forwards)
    stall_s = forward_s - sum(COST.prefill.forward_s([[(0, round(new))]]) for _, new, _ in forwards)
    first, *others = cluster.engines
    first = replace(first, prefill_forward_s=forward_s, prefill_stall_s=(stall_s / 2,), prefill_push_s=stall_s / 2)
    return replace(cluster, engines=(first, *others))


def mean_s(records: Sequence[RequestRecord]) -> float:
    return sum(record.total_s or 0.0 for record in records) / len(records)


def test_sessions_are_the_agents_that_were(agents: list[Trajectory]) -> None:
    records, _ = run(stats("split"), "split", agents)
    sessions = sessions_of(list(reversed(records)))
    assert len(sessions) == len(agents)
    got = sorted(tuple((r.append_tokens, r.generate_tokens) for r in session.rounds) for session in sessions)
    assert got == sorted(tuple((r.append_tokens, r.generate_tokens) for r in agent.rounds) for agent in agents)
    assert all(session.agent(0).chain.stored == 0 for session in sessions)


def test_a_second_successor_and_one_that_came_too_early_begin_sessions() -> None:
    def request(name: str, arrived_s: float, prompt: int, follows: str | None = None) -> RequestRecord:
        return RequestRecord(
            RequestId(name), arrived_s, prompt, 64, 10, outcome="finished", total_s=2.0, follows=follows
        )

    records = [
        request("a", 0.0, 100),
        request("b", 3.0, 200, "a"),
        request("c", 4.0, 200, "a"),
        request("d", 3.5, 300, "b"),  # sent before b was answered
    ]
    sessions = [[record.request_id for record in session.records] for session in sessions_of(records)]
    assert sessions == [["a", "b"], ["d"], ["c"]]
    assert sessions_of(records)[0].rounds[1].think_s == pytest.approx(1.0)


def test_costs_are_found_again(agents: list[Trajectory]) -> None:
    records, _ = run(stats("oracle"), "oracle", agents)  # where nothing moves, forwards are compute
    cost = fit_costs(records, stats("oracle"), PER_TOKEN, 8)
    assert cost.prefill.forward_s([[(0, 4000)]]) == pytest.approx(COST.prefill.forward_s([[(0, 4000)]]), rel=0.1)
    assert cost.decode.step_s(4, 10_000) == pytest.approx(COST.decode.step_s(4, 10_000), rel=0.1)


@pytest.mark.parametrize("was", ["basic", "split", "shorter"])
def test_other_systems_are_foretold(was: str, agents: list[Trajectory]) -> None:
    records, done = run(stats(was), was, agents)
    cluster = with_stalls(stats(was), records)
    answer = what_if(records, cluster, BEGIN_S - 1, BEGIN_S + done.observer.end_s + 1)
    assert answer.refusal is None
    assert answer.recorded is not None
    assert answer.recorded.latency_s == pytest.approx(mean_s(records))
    for outcome in answer.systems:
        truth, _ = run(stats(outcome.what), outcome.what, agents)
        most = 0.6 if outcome.what == "oracle" else 0.15  # what Basic loads counts as compute there
        assert outcome.latency_s == pytest.approx(mean_s(truth), rel=most), outcome.what


def test_what_helps_is_what_binds(agents: list[Trajectory]) -> None:
    """Slow storage NICs: faster ones help most, and no other buffer or memory helps."""
    records, done = run(stats("split"), "split", agents)
    answer = what_if(records, stats("split"), BEGIN_S - 1, BEGIN_S + done.observer.end_s + 1)
    names = [outcome.what for outcome in answer.helps]
    assert names[0] == "storage NICs twice as fast"
    assert "staging buffers twice as large" not in names
    assert "--path split" not in names


def test_for_basic_the_other_path_helps(agents: list[Trajectory]) -> None:
    records, done = run(stats("basic"), "basic", agents)
    answer = what_if(records, stats("basic"), BEGIN_S - 1, BEGIN_S + done.observer.end_s + 1)
    assert "--path split" in [outcome.what for outcome in answer.helps]


def _uneven(given: ClusterStats) -> ClusterStats:
    first, *others = given.nodes
    return replace(given, nodes=(replace(first, storage_nic_bytes_per_s=1.0), *others))


REFUSALS = {
    "no facts": (lambda given: replace(given, facts=None), "is not known"),
    "another path": (lambda given: stats("decode"), "knows no --path decode"),
    "no rates": (
        lambda given: replace(given, nodes=tuple(replace(n, storage_nic_bytes_per_s=None) for n in given.nodes)),
        "storage_nic_mbps",
    ),
    "uneven": (_uneven, "differ in the rate of their storage NICs"),
    "another minute": (lambda given: stats("split", nic=2e5), "does not know this minute"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_it_refuses_where_it_cannot_know(name: str, agents: list[Trajectory]) -> None:
    records, done = run(stats("split"), "split", agents)
    change, reason = REFUSALS[name]
    answer = what_if(records, change(stats("split")), BEGIN_S - 1, BEGIN_S + done.observer.end_s + 1)
    assert answer.refusal is not None
    assert reason in answer.refusal
    assert answer.recorded is None


def test_too_few_or_unfinished_requests(agents: list[Trajectory]) -> None:
    records, done = run(stats("split"), "split", agents)
    until_s = BEGIN_S + done.observer.end_s + 1
    assert "10 are needed" in (what_if(records[:9], stats("split"), BEGIN_S - 1, until_s).refusal or "")
    running = [replace(record, outcome="running") for record in records[::2]] + records[1::2]
    assert "have finished" in (what_if(running, stats("split"), BEGIN_S - 1, until_s).refusal or "")

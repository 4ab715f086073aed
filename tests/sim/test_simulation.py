"""Whole simulations: nothing is lost or made up, physics holds, the same seed gives the same run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from tests.sim.clusters import COST, STORAGE_BOUND, long_agents, run, small_spec

from dualpath.core.errors import ConfigError, DualPathError
from dualpath.core.plan import ReadPlan
from dualpath.scheduler.policy import decode_choice
from dualpath.scheduler.policy.path_choice import PATH_POLICIES, read_on_decode
from dualpath.scheduler.policy.systems import SYSTEMS
from dualpath.scheduler.policy.waiting import Scope
from dualpath.sim.chrome_trace import ChromeTrace
from dualpath.sim.results import rollout_json, serving_json
from dualpath.sim.simulation import Simulation, simulate
from dualpath.sim.spec import SimSpec
from dualpath.sim.workload import load_trajectories
from dualpath.trace.trajectory import Round, Trajectory

MEMORY = ("reserved", "on_demand")


def bytes_read(done: Simulation) -> dict[str, int]:
    return {node.name: node.snic.num_bytes for node in done.cluster.nodes if node.snic.num_bytes}


# -- conservation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("system", SYSTEMS)
def test_what_is_read_is_what_hits_and_nothing_is_left_behind(system: str, memory: str) -> None:
    spec = small_spec(scheduler={"memory": memory})
    done = run(spec, system)
    seen = done.observer
    trajectories = load_trajectories(spec.workload)
    assert seen.num_requests == sum(len(one.rounds) for one in trajectories) == 12 * 8
    assert seen.prompt_tokens == sum(sum(one.prompt_lengths) for one in trajectories)
    assert seen.generated_tokens == sum(turn.generate_tokens for one in trajectories for turn in one.rounds)
    hit_bytes = seen.hit_tokens * COST.kv_bytes_per_token
    assert sum(bytes_read(done).values()) == (0 if SYSTEMS[system].skips_io else hit_bytes)
    assert sum(done.life.reader.side_bytes.values()) == sum(bytes_read(done).values())
    sides = {name.split("-")[0] for name in bytes_read(done)}
    assert sides <= ({"prefill"} if SYSTEMS[system].path == "prefill" else {"prefill", "decode"})


def test_hits_are_the_whole_blocks_of_what_came_before() -> None:
    """Prompts of 100, 232 and 364 tokens, each after a context of 0, 132 and 264."""
    agent = Trajectory("a", (Round(100, 32), Round(100, 32), Round(100, 32)))
    done = run(small_spec(workload={"agents": 1}), "shorter", trajectories=[agent])
    assert done.observer.hit_tokens == 132 // 64 * 64 + 264 // 64 * 64
    stored = sum(node.store_writes.num_bytes for node in done.cluster.nodes)
    assert stored == 396 // 64 * 64 * COST.kv_bytes_per_token


def test_a_prompt_on_storage_entirely_still_computes_one_token() -> None:
    """At most prompt - 1 tokens hit: of a prompt of 128 tokens one block, of 129 two."""
    for generate, expected in ((64, 128), (63, 64)):
        agent = Trajectory("a", (Round(64, generate), Round(1, 2)))
        done = run(small_spec(workload={"agents": 1}), "shorter", trajectories=[agent])
        assert done.observer.hit_tokens == expected


@pytest.mark.parametrize(("path", "pulls", "loops"), [("prefill", False, True), ("decode", True, False)])
def test_traffic_is_what_the_two_paths_carry(
    monkeypatch: pytest.MonkeyPatch, path: str, pulls: bool, loops: bool
) -> None:
    """Sections 4.1 and 4.2: per prompt of hits and misses, bytes through both NICs and both memories, by path."""
    monkeypatch.setitem(PATH_POLICIES, "shorter", PATH_POLICIES[path])  # type: ignore[arg-type]
    spec = small_spec(workload={"agents": 1}, scheduler={"quota_s": 100.0, "max_batch_tokens": 100_000})
    done = run(spec, "shorter", trajectories=long_agents(1, num_rounds=2))
    prompts, hit, size = 30_000 + 30_066, done.observer.hit_tokens, COST.kv_bytes_per_token
    pull, loop = hit * pulls, hit * loops
    push = prompts - pull
    assert (done.observer.moved.pulled, done.observer.moved.pushed) == (pull, push)
    prefill, decode = done.cluster.prefill, done.cluster.decode
    assert sum(engine.nic.out.num_bytes for engine in prefill) == (loop + push) * size
    assert sum(engine.nic.into.num_bytes for engine in prefill) == (loop + pull) * size
    assert sum(engine.nic.out.num_bytes for engine in decode) == (pull + prompts) * size
    assert sum(engine.nic.into.num_bytes for engine in decode) == (push + prompts) * size
    stored = sum(node.store_writes.num_bytes for node in done.cluster.nodes)
    dram = sum(node.dram.num_bytes for node in done.cluster.nodes)
    assert dram == (hit + loop + pull + push + prompts) * size + stored


# -- physics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_prefill", "num_decode"), [(1, 1), (2, 1), (1, 2)])
def test_where_reading_is_all_pooled_nics_give_the_ratio_of_nodes(num_prefill: int, num_decode: int) -> None:
    """arXiv 2602.21548, section 4.2: (P + D) / P, from below and close."""
    slow = {"storage_nic_bytes_per_s": 1e9, "staging_bytes": 800_000_000_000}
    spec = small_spec(num_prefill, num_decode, cluster=slow, workload={"agents": 48}, scheduler={"admission_s": 0.0})
    agents = long_agents(48, num_rounds=16)
    basic, split = (run(spec, system, STORAGE_BOUND, agents) for system in ("layerwise", "split"))
    num_bytes = basic.observer.hit_tokens * STORAGE_BOUND.kv_bytes_per_token
    assert basic.observer.end_s >= num_bytes / (num_prefill * 1e9)
    assert split.observer.end_s >= num_bytes / ((num_prefill + num_decode) * 1e9)
    speedup = basic.observer.end_s / split.observer.end_s
    assert speedup == pytest.approx((num_prefill + num_decode) / num_prefill, rel=0.1)


def test_every_resource_bounds_the_run() -> None:
    """Make one slow at a time: the run takes at least what it has to move through it, and about that."""
    agents = long_agents(24)
    for setting, value, role, resource in (
        ("compute_nic_bytes_per_s", 2e8, "decode", "compute_nic_into"),
        ("dram_bytes_per_s", 1e9, "decode", "dram"),
        ("storage_nic_bytes_per_s", 5e8, "prefill", "storage_read"),
    ):
        spec = small_spec(1, 1, cluster={setting: value}, workload={"agents": 24})
        busy = rollout_json(run(spec, "shorter", STORAGE_BOUND, agents))["utilisation"]
        assert max(busy, key=lambda side: busy[side][resource]) in (role, "decode")
        assert 0.6 < max(side[resource] for side in busy.values()) <= 1.0 + 1e-9, resource


def test_a_lone_request_takes_the_sum_of_its_parts() -> None:
    """Fetch, read, forward, hand-over, copy, decode: nothing overlaps but what section 4.1 overlaps."""
    spec = small_spec(1, 1, scheduler={"fetch_interval_s": 0.0}, workload={"agents": 1})
    done = run(spec, "layerwise", trajectories=[Trajectory("a", (Round(6400, 64), Round(100, 11)))])
    second = rollout_json(done)
    hit = 6464
    new = 6564 - hit
    forward_s = COST.prefill.forward_s([[(hit, new)], []])
    read_s, copy_s = (tokens * COST.kv_bytes_per_token / 50e9 for tokens in (hit, 6564))
    first_forward_s = COST.prefill.forward_s([[(0, 6400)], []])
    first_s = 0.05 + first_forward_s + 6400 * 50_000 / 50e9 + 0.01 + 63 * 0.021
    assert done.observer.end_s == pytest.approx(first_s + 0.05 + read_s + forward_s + copy_s + 0.01 + 10 * 0.021)
    assert second["phases_s"]["reading"]["mean"] == pytest.approx(read_s / 2)


def test_whole_requests_in_device_memory_load_before_they_compute() -> None:
    agents = [Trajectory("a", (Round(30_000, 2), Round(64, 2)))]
    spec = small_spec(1, 1, cluster={"compute_nic_bytes_per_s": 1e10}, workload={"agents": 1})
    basic, layerwise = (run(spec, system, trajectories=agents).observer.end_s for system in ("basic", "layerwise"))
    hit, new = 29_952, 30_066 - 29_952
    forward_s = COST.prefill.forward_s([[(hit, new)], []])
    moves_s = 30_066 * 50_000 / 1e10
    assert forward_s < moves_s, "the load takes longer than the forward here"
    assert basic - layerwise > 0.9 * forward_s


def test_staging_memory_holds_reads_back_but_loses_none() -> None:
    tight = {"staging_bytes": 40_000 * 50_000}
    done = run(small_spec(1, 1, cluster=tight, workload={"agents": 12}), "shorter", trajectories=long_agents(12))
    assert all(node.staging.peak_tokens <= 40_000 for node in done.cluster.nodes)
    assert rollout_json(done)["phases_s"]["placed"]["mean"] > 0
    roomy = run(small_spec(1, 1, workload={"agents": 12}), "shorter", trajectories=long_agents(12))
    assert roomy.observer.end_s < done.observer.end_s


def test_think_time_adds_up() -> None:
    agents = [Trajectory("a", (Round(100, 10), Round(100, 10, think_s=7.0), Round(100, 10, think_s=5.0)))]
    plain = [replace(agents[0], rounds=tuple(replace(one, think_s=0.0) for one in agents[0].rounds))]
    spec = small_spec(workload={"agents": 1}, scheduler={"fetch_interval_s": 0.0})
    with_s, without_s = (run(spec, "shorter", trajectories=one).observer.end_s for one in (agents, plain))
    assert with_s == pytest.approx(without_s + 12.0)


# -- the same world as the live system's ------------------------------------------------------------------------------


def test_another_path_policy_is_another_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    before = run(small_spec(), "shorter")
    monkeypatch.setitem(PATH_POLICIES, "shorter", read_on_decode)  # type: ignore[arg-type]
    after = run(small_spec(), "shorter")
    assert any(name.startswith("prefill") for name in bytes_read(before))
    assert not any(name.startswith("prefill") for name in bytes_read(after))


def test_every_choice_is_the_live_schedulers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Called for every request, and what they say happens: everything on the first engine of each kind."""
    calls = {"prefill": 0, "decode": 0}

    def first_prefill(scope: Scope, engine: Any, num_requests: int, num_tokens: int) -> None:
        calls["prefill"] += num_requests == 1

    def first_decode(lengths: Any, engines: Any, may_take: Any) -> Any:
        for _ in lengths:
            calls["decode"] += 1
            yield engines[0].engine_id

    monkeypatch.setattr(Scope, "add", first_prefill)  # no load is ever seen: the first is as good as any
    monkeypatch.setattr(decode_choice, "assign_decode", first_decode)
    done = run(small_spec(1, 1), "shorter")
    assert calls["prefill"] == done.observer.num_requests
    assert calls["decode"] == done.observer.num_requests
    assert [engine.nic.into.num_bytes > 0 for engine in done.cluster.prefill] == [True, False]
    assert [engine.nic.into.num_bytes > 0 for engine in done.cluster.decode] == [True, False]


def test_a_plan_the_policy_makes_is_the_plan_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PATH_POLICIES, "shorter", lambda q: ReadPlan(q.num_hit_blocks, q.num_hit_blocks // 4))  # type: ignore[arg-type]
    done = run(small_spec(1, 1), "shorter", trajectories=None)
    sides = done.life.reader.side_bytes
    assert sides["prefill"] / (sides["prefill"] + sides["decode"]) == pytest.approx(0.25, abs=0.01)


# -- determinism ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"workload": {"aps": 0.5, "warm_up_s": 10.0, "duration_s": 60.0}}])
def test_the_same_seed_gives_the_same_numbers(changes: dict[str, Any]) -> None:
    def numbers(seed: int) -> str:
        spec = small_spec(**changes)
        spec = replace(spec, workload=replace(spec.workload, seed=seed))
        done = run(spec, "split")
        return json.dumps(serving_json(done) if spec.workload.aps else rollout_json(done))

    assert numbers(1) == numbers(1)
    assert numbers(1) != numbers(2)


# -- online -----------------------------------------------------------------------------------------------------------


def online(aps: float, **changes: Any) -> SimSpec:
    return small_spec(workload={"aps": aps, "warm_up_s": 20.0, "duration_s": 100.0, "rounds": 5}, **changes)


def test_a_point_of_a_load_that_is_light() -> None:
    point = serving_json(run(online(0.2), "shorter"))
    assert point["steady"]
    assert point["meets_slo"]
    assert point["without_first_token"] <= 1
    assert point["requests"] > 50
    assert set(point["phases_s"]) == {
        "queued",
        "placed",
        "reading",
        "ready",
        "prefilling",
        "handed_over",
        "decoding",
    }


def test_an_overload_is_unsteady_and_the_waiting_count() -> None:
    point = serving_json(run(online(30.0), "basic"))
    assert not point["meets_slo"]
    assert point["without_first_token"] > 100
    assert point["ttft_s"]["mean"] > 4.0


def test_the_working_set_is_what_live_agents_have() -> None:
    """Section 8.2: arrivals times time times half of the final context, for agents that grow evenly."""
    done = run(online(2.0), "shorter")
    mean_bytes = serving_json(done)["working_set_bytes"]["mean"]
    agents = load_trajectories(done.spec.workload)
    total = sum(one.total_tokens for one in agents) / len(agents) * COST.kv_bytes_per_token
    agent_s = serving_json(done)["agent_jct_s"]
    assert mean_bytes == pytest.approx(2.0 * agent_s * total / 2, rel=0.5)


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("system", ["basic", "shorter", "split", "oracle"])
def test_lost_engines_lose_no_request(system: str, memory: str) -> None:
    events = ("0.5 prefill0-0 2", "1 decode-node0 3", "1.7 decode1-1", "2.5 prefill-node1 1")
    tight = {"staging_bytes": 60_000 * 50_000}
    spec = small_spec(2, 2, cluster=tight, scheduler={"memory": memory}, failures={"events": events})
    agents = long_agents(16)
    done = run(replace(spec, workload=replace(spec.workload, agents=16)), system, trajectories=agents)
    calm = run(small_spec(2, 2, workload={"agents": 16}), system, trajectories=agents)
    assert done.observer.num_resent > 0
    assert done.observer.num_requests == calm.observer.num_requests
    assert done.observer.prompt_tokens == calm.observer.prompt_tokens
    assert done.observer.generated_tokens == calm.observer.generated_tokens
    assert done.observer.end_s > calm.observer.end_s


@pytest.mark.parametrize("at_s", [0.02, 0.08, 0.2, 0.5, 0.9, 1.5, 2.5])
@pytest.mark.parametrize("system", ["basic", "shorter"])
def test_a_failure_at_any_moment_is_survived(system: str, at_s: float) -> None:
    events = (f"{at_s} decode0-0 0.5", f"{at_s} prefill0-1 0.5")
    done = run(small_spec(1, 1, failures={"events": events}), system, trajectories=long_agents(12))
    assert done.observer.num_agents_done == 12


def test_without_engines_nobody_waits_silently() -> None:
    spec = small_spec(1, 1, failures={"events": ("1 decode-node0",)})
    with pytest.raises(DualPathError, match="no engines are left"):
        run(spec, "shorter")


def test_failures_of_what_there_is_not() -> None:
    with pytest.raises(ConfigError, match="no engine or node 'decode-node9'"):
        run(small_spec(failures={"events": ("1 decode-node9",)}), "shorter")
    with pytest.raises(ConfigError, match="TIME_S NAME"):
        run(small_spec(failures={"events": ("soon decode-node0",)}), "shorter")


# -- timeline ---------------------------------------------------------------------------------------------------------


def test_the_timeline_has_every_forward_and_every_phase() -> None:
    trace = ChromeTrace()
    done = simulate(small_spec(), COST, "shorter", trace=trace)
    events = json.loads(trace.text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    forwards = sum(group.num_forwards * len(group.engines) for group in done.cluster.groups)
    assert sum(span["name"] == "forward" for span in spans) == forwards
    assert sum(span["name"] == "decoding" for span in spans) == done.observer.num_requests
    assert all(span["dur"] > 0 and math.isfinite(span["ts"]) for span in spans)

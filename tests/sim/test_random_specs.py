"""Random small clusters, workloads and failures: every request and every byte is accounted for, whatever happens."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.sim.clusters import COST, small_spec

from dualpath.core.plan import Role
from dualpath.report.updates import UPDATE, WIPE
from dualpath.scheduler.policy.systems import SYSTEMS
from dualpath.sim.engines.cluster import build
from dualpath.sim.results import rollout_json, serving_json
from dualpath.sim.simulation import Simulation, prepare, simulate
from dualpath.sim.spec import SimSpec
from dualpath.trace.trajectory import Round, Trajectory

BLOCK = 64
LONGEST = 12_000  # tokens, as whole blocks: what every memory of a random cluster can hold
GIVEN = settings(max_examples=30, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

tokens = st.one_of(st.integers(1, 3), st.sampled_from([63, 64, 65, 128]), st.integers(1, 900))
rounds = st.builds(Round, tokens, tokens, think_s=st.sampled_from([0.0, 0.0, 0.3]))
agents = st.lists(st.lists(rounds, min_size=1, max_size=6), min_size=1, max_size=10).map(
    lambda found: [Trajectory(f"a{index}", tuple(one)) for index, one in enumerate(found)]
)


@st.composite
def specs(draw: st.DrawFn) -> SimSpec:
    """Clusters of at most eight engines whose memories and links are tight as often as not."""
    engines = draw(st.sampled_from([1, 2, 4]))
    longest_bytes = (LONGEST + BLOCK) * COST.kv_bytes_per_token
    cluster: dict[str, Any] = {
        "engines_per_node": engines,
        "prefill_group_engines": draw(st.sampled_from([size for size in (1, 2, 4) if size <= engines])),
        "decode_group_engines": draw(st.sampled_from([size for size in (1, 2, 4) if size <= engines])),
        "storage_nics_per_node": draw(st.integers(1, 2)),
        "storage_nic_bytes_per_s": draw(st.sampled_from([2e8, 5e9])),
        "compute_nic_bytes_per_s": draw(st.sampled_from([1e9, 5e10])),
        "staging_bytes": draw(st.sampled_from([1, 2, 50])) * longest_bytes,
        "prefill_kv_bytes": draw(st.sampled_from([1, 3])) * longest_bytes,
        "decode_kv_bytes": draw(st.sampled_from([1, 3, 20])) * longest_bytes,
        "block_header_bytes": draw(st.sampled_from([0, 4096])),
    }
    scheduler: dict[str, Any] = {
        "memory": draw(st.sampled_from(["reserved", "on_demand"])),
        "prefill_load": draw(st.sampled_from(["prompt", "new"])),
        "fetch_interval_s": draw(st.sampled_from([0.0, 0.1])),
        "writes_hold_staging": draw(st.booleans()),
        "max_batch_tokens": draw(st.sampled_from([64, 500, 8192])),
        "quota_s": draw(st.sampled_from([0.005, 0.3])),
        "expected_output_tokens": draw(st.sampled_from([0, 256])),
    }
    return small_spec(draw(st.integers(1, 2)), draw(st.integers(1, 2)), cluster=cluster, scheduler=scheduler)


@st.composite
def failures(draw: st.DrawFn, spec: SimSpec) -> tuple[str, ...]:
    """Everything that fails comes back, so that the work can end."""
    cluster = build(spec, COST, SYSTEMS["shorter"])
    engines = [one.engine_id for one in cluster.prefill] + [one.engine_id for one in cluster.decode]
    nodes = [node.name for node in cluster.nodes]
    one = st.tuples(st.floats(0.01, 6), st.sampled_from(nodes + engines), st.floats(0.01, 2))
    return tuple(f"{at_s:.4f} {name} {back_s:.4f}" for at_s, name, back_s in draw(st.lists(one, max_size=5)))


def check_limits(done: Simulation) -> None:
    """No memory ever held more than it has, and no link carried more than time allows."""
    shape, size = done.spec.cluster, COST.kv_bytes_per_token
    assert all(node.staging.peak_tokens * size <= shape.staging_bytes for node in done.cluster.nodes)
    assert all(one.kv.peak_tokens * size <= shape.kv_bytes(Role.PREFILL) for one in done.cluster.prefill)
    assert all(one.kv.peak_tokens * size <= shape.kv_bytes(Role.DECODE) for one in done.cluster.decode)
    json.dumps(rollout_json(done), allow_nan=False)
    used = rollout_json(done)["utilisation"]
    assert all(0 <= share <= 1 + 1e-9 for side in used.values() for share in side.values()), used


def finished(spec: SimSpec, system: str, found: list[Trajectory], kind: str | None = None) -> Simulation:
    done = prepare(replace(spec, workload=replace(spec.workload, agents=len(found))), COST, system, found, kind=kind)
    done.run()
    done.check_integrity()
    check_limits(done)
    return done


@pytest.mark.parametrize("system", SYSTEMS)
@GIVEN
@given(data=st.data())
def test_every_request_and_byte_is_accounted_for(system: str, data: st.DataObject) -> None:
    spec, found = data.draw(specs()), data.draw(agents)
    done = finished(spec, system, found)
    seen, size = done.observer, COST.kv_bytes_per_token
    hits = 0
    for one in found:
        known = 0
        for turn, prompt in zip(one.rounds, one.prompt_lengths, strict=True):
            hits += min(known, prompt - 1) // BLOCK * BLOCK
            known = prompt + turn.generate_tokens
    assert seen.num_requests == sum(len(one.rounds) for one in found)
    assert seen.num_agents_done == len(found)
    assert seen.num_resent == 0
    assert seen.prompt_tokens == sum(sum(one.prompt_lengths) for one in found)
    assert seen.generated_tokens == sum(turn.generate_tokens for one in found for turn in one.rounds)
    assert seen.hit_tokens == hits
    per_block = BLOCK * size + spec.cluster.block_header_bytes
    read = sum(node.snic.num_bytes for node in done.cluster.nodes)
    assert read == (0 if SYSTEMS[system].skips_io else hits // BLOCK * per_block)
    written = sum(node.store_writes.num_bytes for node in done.cluster.nodes)
    blocks = sum(one.total_tokens // BLOCK for one in found)
    assert written == (0 if SYSTEMS[system].skips_io else blocks * per_block)


@pytest.mark.parametrize("system", SYSTEMS)
@GIVEN
@given(data=st.data())
def test_failures_lose_no_request_and_leave_nothing_behind(system: str, data: st.DataObject) -> None:
    spec, found = data.draw(specs()), data.draw(agents)
    spec = replace(spec, failures=replace(spec.failures, events=data.draw(failures(spec))))
    done = finished(spec, system, found)
    seen = done.observer
    assert seen.num_requests == sum(len(one.rounds) for one in found)
    assert seen.num_agents_done == len(found)
    assert seen.prompt_tokens == sum(sum(one.prompt_lengths) for one in found)
    assert seen.generated_tokens == sum(turn.generate_tokens for one in found for turn in one.rounds)
    assert rollout_json(done) == rollout_json(finished(spec, system, found))


@pytest.mark.parametrize("kind", [UPDATE, WIPE])
@pytest.mark.parametrize("system", ["basic", "split", "oracle"])
@GIVEN
@given(data=st.data())
def test_updates_and_evictions_lose_no_request_and_leave_nothing_behind(
    system: str, kind: str, data: st.DataObject
) -> None:
    spec, found = data.draw(specs()), data.draw(agents)
    updates = {
        "every": data.draw(st.integers(1, 8)),
        "weights": data.draw(st.sampled_from([None, 2, 3])),
        "load_s": data.draw(st.sampled_from([0.0, 0.1, 2.0])),
        "wipe_s": data.draw(st.sampled_from([0.0, 0.7])),
    }
    store_bytes = data.draw(st.sampled_from([None, 1, 30 * BLOCK * COST.kv_bytes_per_token]))
    spec = replace(
        spec,
        updates=replace(spec.updates, **updates),
        cluster=replace(spec.cluster, store_bytes=store_bytes),
        failures=replace(spec.failures, events=data.draw(failures(spec))),
    )
    done = finished(spec, system, found, kind)
    seen = done.observer
    num_turns = sum(len(one.rounds) for one in found)
    assert seen.num_requests == num_turns
    assert seen.num_agents_done == len(found)
    assert seen.prompt_tokens == sum(sum(one.prompt_lengths) for one in found)
    assert seen.generated_tokens == sum(turn.generate_tokens for one in found for turn in one.rounds)
    assert done.life.updates is not None
    assert done.life.updates.num_updates == num_turns // updates["every"]
    assert rollout_json(done) == rollout_json(finished(spec, system, found, kind))


@pytest.mark.parametrize("system", SYSTEMS)
@GIVEN
@given(data=st.data(), aps=st.sampled_from([1.0, 20.0]), warm_up_s=st.sampled_from([0.0, 3.0]))
def test_a_window_of_arrivals_gives_finite_numbers(
    system: str, data: st.DataObject, aps: float, warm_up_s: float
) -> None:
    """However few arrive, and whatever is still under way or lost when the window ends."""
    spec = data.draw(specs())
    work = replace(spec.workload, aps=aps, warm_up_s=warm_up_s, duration_s=5.0, rounds=3, scale=0.2)
    failed = replace(spec.failures, events=data.draw(failures(spec)))
    spec = replace(spec, workload=work, failures=failed)
    done = simulate(spec, COST, system)
    point = json.loads(json.dumps(serving_json(done), allow_nan=False))
    assert point["requests"] <= sum(len(agent.rounds) for agent in done.agents)
    assert 0 <= point["hit_rate"] < 1
    assert done.observer.end_s == warm_up_s + 5.0

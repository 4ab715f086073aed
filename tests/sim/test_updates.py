"""Weights that change in a simulation: what is found afterwards, what begins anew, what goes where storage is full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.sim.clusters import COST, small_spec
from tests.sim.test_spec import GOOD

from dualpath.cli.main import main
from dualpath.report.updates import KINDS, UPDATE, WIPE
from dualpath.sim.requests.agent import Agent
from dualpath.sim.requests.storage import Storage
from dualpath.sim.results import rollout_json
from dualpath.sim.simulation import Simulation, simulate
from dualpath.trace.trajectory import Round, Trajectory

BLOCK = 64
ONE_AGENT = [Trajectory("a", (Round(100, 28),) * 5)]  # contexts of 128, 256, 384, 512 tokens, all whole blocks


def run(kind: str | None, found: list[Trajectory], cluster: dict[str, Any] | None = None, **updates: Any) -> Simulation:
    spec = small_spec(workload={"agents": len(found)}, cluster=cluster or {}, updates=updates)
    done = simulate(spec, COST, "split", found, kind=kind)
    done.check_integrity()
    return done


def hits(done: Simulation) -> int:
    return done.observer.hit_tokens


def test_new_weights_find_nothing_and_then_their_own() -> None:
    """A change after the third of five turns: prompts of 100, 228, 356, 484 and 612 tokens."""
    assert hits(run(None, ONE_AGENT, every=3)) == 128 + 256 + 384 + 512
    done = run(UPDATE, ONE_AGENT, every=3)
    assert hits(done) == 128 + 256 + 0 + 512, "the fourth turn has computed and stored all of its context"
    stored = sum(node.store_writes.num_bytes for node in done.cluster.nodes)
    assert stored == (384 + 640) * COST.kv_bytes_per_token


def test_a_step_back_finds_what_its_weights_have_stored() -> None:
    """Of two weights the first come back after the second change."""
    assert hits(run(UPDATE, ONE_AGENT, every=2, weights=2)) == 128 + 0 + 384 + 256
    assert hits(run(UPDATE, ONE_AGENT, every=2)) == 128 + 0 + 384 + 0
    assert hits(run(WIPE, ONE_AGENT, every=2, weights=2)) == 128 + 0 + 384 + 0, "what is wiped does not come back"


def test_what_is_loaded_meanwhile_costs_nothing_and_a_wipe_lets_all_stand_still() -> None:
    found = [Trajectory(f"a{index}", (Round(2000, 200),) * 6) for index in range(8)]
    plain, updated, wiped = (run(kind, found, every=16, load_s=1.0, wipe_s=50.0) for kind in KINDS)
    assert plain.life.updates is None
    assert updated.life.updates is not None
    assert updated.life.updates.num_updates == 3
    assert plain.observer.end_s < updated.observer.end_s < plain.observer.end_s + 20
    assert wiped.observer.end_s > plain.observer.end_s + 2 * 51, "the third may come when all is done"
    assert wiped.observer.generated_tokens == updated.observer.generated_tokens == plain.observer.generated_tokens


def test_a_prompt_that_is_being_computed_begins_anew_and_an_answer_goes_on() -> None:
    """One agent's turn ends while another's prompt is being computed and a third decodes."""
    found = [Trajectory(f"a{index}", (Round(*one),)) for index, one in enumerate([(64, 2), (60_000, 2), (64, 2000)])]
    spec = small_spec(workload={"agents": 3}, updates={"every": 1, "load_s": 0.2}, scheduler={"quota_s": 0.01})
    done = simulate(spec, COST, "split", found)
    done.check_integrity()
    assert done.observer.num_resent > 0
    assert done.observer.generated_tokens == 2004
    stored = sum(node.store_writes.num_bytes for node in done.cluster.nodes) // COST.kv_bytes_per_token
    assert stored == 64 + 60_002 // 64 * 64 + 64, "of the long answer, which is two weights', the prompt only"


def test_what_is_full_evicts_former_weights_first() -> None:
    """Six agents with 8,192 tokens each in the end; half way the weights change."""
    found = [Trajectory(f"a{index}", (Round(1000, 24, think_s=5.0),) * 8) for index in range(6)]
    room = {"store_bytes": 55_000 * COST.kv_bytes_per_token}
    done, free = run(UPDATE, found, room, every=24), run(UPDATE, found, every=24)
    assert 24_000 > done.life.storage.evicted_tokens > 6 * 1.5 * 8192 - 55_000
    assert done.life.storage.used_tokens <= 55_000
    assert hits(done) == hits(free), "only blocks went that nobody would have found"
    plain = run(None, found, {"store_bytes": 30_000 * COST.kv_bytes_per_token})
    assert plain.life.storage.evicted_tokens > 0
    assert 0 < hits(plain) < hits(run(None, found))


def test_a_chain_goes_from_its_end_and_the_least_recently_used_first() -> None:
    agents = [Agent(index, (Round(1, 1),)) for index in range(3)]
    storage = Storage(agents, 10 * BLOCK)
    for agent in agents:
        storage.grow(agent, 3 * BLOCK)
        storage.end(agent)
    agents[0].next_request(0, 0.0, 0.0, BLOCK)
    storage.begin(agents[0].request)  # type: ignore[arg-type]
    storage.grow(agents[0], 6 * BLOCK)
    assert [agent.chain.stored // BLOCK for agent in agents] == [6, 1, 3]
    storage.use_weights(1)
    assert [agent.chain.stored for agent in agents] == [0, 0, 0]
    storage.grow(agents[2], 4 * BLOCK)
    storage.use_weights(0)
    assert [agent.chain.stored // BLOCK for agent in agents] == [6, 0, 0], "of the old ones, not of the new"
    storage.check_integrity()


def test_a_spec_with_updates_runs_each_system_three_times(tmp_path: Path) -> None:
    spec, out = tmp_path / "spec.toml", tmp_path / "out.json"
    spec.write_text(GOOD.replace('systems = "basic,shorter"', 'systems = "split"\n[updates]\nload_s = 1.0'))
    assert main(["sim", "run", "--spec", str(spec), "--update-every", "4", "--json", str(out)]) == 0
    systems = json.loads(out.read_text())["systems"]
    assert list(systems) == ["split", "split, update", "split, wipe"]
    assert [one["weight_updates"] for one in systems.values()] == [0, 3, 3]
    assert systems["split"]["hit_rate"] > systems["split, update"]["hit_rate"]


def test_a_simulation_with_updates_is_the_same_twice() -> None:
    found = [Trajectory(f"a{index}", (Round(500, 50),) * 5) for index in range(5)]
    one, other = (rollout_json(run(UPDATE, found, every=3, weights=3, load_s=0.3)) for _ in range(2))
    assert one == other

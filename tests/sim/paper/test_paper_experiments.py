"""The experiments' own code, on simulations of seconds; what the paper's figures must come to where that is cheap."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dualpath.sim.bottleneck import NodeShape, Resource, utilisations
from dualpath.sim.paper import bottleneck_range, online, table1, working_set
from dualpath.sim.paper.catalogue import EXPERIMENTS
from dualpath.sim.paper.execute import execute_all
from dualpath.sim.paper.rows import Row
from dualpath.sim.paper.run import Outcome, Run, execute
from dualpath.sim.workload import load_trajectories, longest_tokens
from dualpath.trace.load import load_trace

TINY = ("workload.rounds", 3)


def _tiny(run: Run) -> Run:
    """The same kind of run, small enough for a test."""
    if run.aps is not None:
        window = (("workload.warm_up_s", 20.0), ("workload.duration_s", 20.0))
        kept = tuple(one for one in run.settings if one[0] not in ("workload.warm_up_s", "workload.duration_s"))
        return replace(run, prefill_nodes=1, decode_nodes=1, aps=0.5, settings=(*kept, *window, TINY))
    return replace(run, prefill_nodes=1, decode_nodes=1, agents=8, settings=(*run.settings, TINY))


@pytest.mark.parametrize("name", [name for name, one in EXPERIMENTS.items() if name not in ("table1", "table2")])
@pytest.mark.parametrize("is_full", [False, True])
def test_every_experiment_makes_rows_of_tiny_runs(name: str, is_full: bool) -> None:
    one = EXPERIMENTS[name]
    tiny: dict[Run, Outcome] = {}
    outcomes = {}
    for run in one.runs(is_full):
        small = _tiny(run)
        if small not in tiny:
            tiny[small] = execute(small)
        outcomes[run] = tiny[small]
    if name == "bottleneck_range":  # a line through points of one cluster has no slope
        outcomes = {run: _exact(run) for run in one.runs(is_full)}
    report = one.report(outcomes, is_full)
    assert report.rows
    ids = [row.id for row in report.rows]
    assert len(ids) == len(set(ids))
    for row in report.rows:
        assert row.id.startswith((name, "fig", "online", "table3"))
        assert row.ours is None or isinstance(row.ours, float | int)
        if row.ours is None:
            assert row.note


def _exact(run: Run) -> Outcome:
    """What the closed forms say, as if simulated."""
    used = utilisations(run.prefill_nodes, run.decode_nodes, NodeShape())
    roles: dict[str, dict[str, float]] = {"prefill": {"storage_read": 1.0}, "decode": {"storage_read": 1.0}}
    for resource, (role, key) in bottleneck_range.KEYS.items():
        roles[role.value][key] = used[resource]
    return Outcome(utilisation=roles)


def test_range_found_by_simulation_is_exact_on_exact_points() -> None:
    one = EXPERIMENTS["bottleneck_range"]
    rows = {row.id: row for row in one.report({run: _exact(run) for run in one.runs(False)}, False).rows}
    assert rows["bottleneck_range.low"].ours == pytest.approx(1 / 7)
    assert rows["bottleneck_range.high"].ours == pytest.approx(7 / 2)


def test_simulation_and_closed_form_agree_below_the_range() -> None:
    """1P9D: every storage NIC's bytes end in eight prefill NICs, which are fuller than the storage NICs."""
    run = replace(bottleneck_range.EXPERIMENT.runs(False).__iter__().__next__(), agents=60)
    nodes = (run.prefill_nodes, run.decode_nodes)
    used = bottleneck_range.relative_use(execute(run), nodes)
    closed = utilisations(*nodes, NodeShape())
    assert nodes == (1, 9)
    assert used[Resource.PREFILL_CNIC_WRITE] == pytest.approx(closed[Resource.PREFILL_CNIC_WRITE], rel=0.08)
    assert used[Resource.PREFILL_CNIC_WRITE] > 1


def _served(aps: float, ttft_s: float, p99_s: float) -> Outcome:
    phases = {"queued": 1.0, "decoding": 3.0}
    return Outcome(ttft_s=ttft_s, ttft_p99_s=p99_s, ttst_s=1.0, tpot_s=0.04, meets_slo=ttft_s <= 4, phases_s=phases)


def _online_rows(p99_at: float, mean_at: float) -> dict[str, Row]:
    """Every system holds by p99 up to one rate, by the mean up to another."""
    outcomes = {}
    for key, rates in online.rates(False).items():
        for aps in rates:
            one = _served(aps, 1.0 if aps <= mean_at else 5.0, 3.0 if aps <= p99_at else 6.0)
            outcomes[online.run_of(False, *key, aps)] = one
    return {row.id: row for row in online.EXPERIMENT.report(outcomes, False).rows}


def test_capacity_is_known_only_where_a_rate_failed() -> None:
    rows = _online_rows(p99_at=0.35, mean_at=0.45)
    assert rows["online.660B.shorter"].ours == 0.45
    assert rows["online.660B.basic"].ours is None, "the highest rate tried held"
    assert rows["online.660B.gain"].ours is None
    assert rows["online.660B.p99"].ours == pytest.approx(1.0)
    assert "0.35 and 0.35 APS" in rows["online.660B.p99"].note
    assert rows["online.27B.p99"].ours is None
    assert rows["online.660B.p99"].paper is None


def test_the_working_set_is_by_the_papers_law() -> None:
    outcomes = {
        run: replace(_served(0.1, 1.0, 1.0), working_set_bytes=1e9) for run in working_set.EXPERIMENT.runs(True)
    }
    rows = {row.id: row for row in working_set.EXPERIMENT.report(outcomes, True).rows}
    traces = load_trace("synth:64K")
    turns, total = (
        sum(found) / len(traces) for found in zip(*[(len(t.rounds), t.total_tokens) for t in traces], strict=True)
    )
    assert rows["working_set.0.1"].ours == pytest.approx(0.1 * turns * 4.0 * total / 2 * 48068 / 1e9)
    assert rows["working_set.0.45"].ours == pytest.approx(4.5 * (rows["working_set.0.1"].ours or 0))
    assert rows["working_set.0.1.counted"].ours == 1.0


def test_contexts_of_a_million_tokens_are_that_long() -> None:
    run = next(iter(EXPERIMENTS["beyond_1m"].runs(False)))
    assert longest_tokens(load_trajectories(run.spec.workload)) > 1_000_000


def test_table_1_is_within_the_stated_bounds() -> None:
    rows = table1.EXPERIMENT.report({}, False).rows
    assert len(rows) == 11
    for row in rows:
        assert row.rel_error is not None
        assert abs(row.rel_error) <= (0.08 if "DeepSeek" in row.id else 0.02), row


def test_each_run_is_made_once_and_the_longest_first() -> None:
    short = _tiny(Run("660B", "shorter", 1, 1, 2))
    long = replace(short, agents=9)
    told: list[float] = []
    found = execute_all([short, long, short], told.append, workers=1)
    assert told == [9, 8]
    assert found[short] == execute(short)


def test_worker_processes_find_the_same() -> None:
    runs = [_tiny(Run("660B", system, 1, 1, 2)) for system in ("basic", "shorter")]
    assert execute_all(runs, lambda _: None, workers=2) == execute_all(runs, lambda _: None, workers=1)


def test_what_does_not_fit_is_an_outcome() -> None:
    run = replace(_tiny(Run("660B", "basic", 1, 1, 2)), settings=(("cluster.prefill_kv_bytes", 1_000_000),))
    assert "impossible cluster" in execute(run).impossible

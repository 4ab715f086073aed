"""Synthetic traces have the paper's columns; scaling and resampling keep a trace's shape."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath.core.errors import ConfigError
from dualpath.trace import (
    SHAPES,
    Prefix,
    Round,
    Trajectory,
    describe,
    infinite_cache_hits,
    limit_rounds,
    load_trace,
    resample,
    scale,
    synthesize,
    think_scale,
    write_trajectories,
)


def errors(shape: str, trajectories: list[Trajectory]) -> list[float]:
    found, wanted = astuple(describe(trajectories).paper), astuple(SHAPES[shape].table)
    return [abs(a / b - 1) for a, b in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("shape", SHAPES)
def test_seed_0_meets_the_table_within_3_percent(shape: str) -> None:
    assert max(errors(shape, synthesize(shape))) < 0.03


@pytest.mark.parametrize("shape", SHAPES)
def test_other_seeds_meet_the_table_within_8_percent(shape: str) -> None:
    """Of seeds 0-59, 57, 54 and 60 are within 5 % (32K, 48K, 64K); the append column misses, by 7.7 % at worst."""
    worst = [max(errors(shape, synthesize(shape, seed=seed))) for seed in (1, 2)]
    assert max(worst) < 0.08
    assert min(worst) < 0.05


def test_few_agents_represent_many() -> None:
    assert synthesize("64K", num_agents=5) == synthesize("64K")[:5]
    assert max(errors("64K", synthesize("64K", num_agents=50))) < 0.2
    assert all(one.total_tokens <= 65536 for one in synthesize("64K", num_agents=50))


def test_requests_are_smaller_than_the_table_says() -> None:
    stats = describe(synthesize("64K"))
    assert 0.5 < stats.request_append_tokens / stats.paper.append_tokens < 0.7
    assert stats.hits.token_rate > 0.98


def agent(name: str, *lengths: tuple[int, int], prefix: Prefix | None = None) -> Trajectory:
    return Trajectory(name, tuple(Round(append, generate, 2.0) for append, generate in lengths), prefix, start_s=4.0)


def test_statistics_follow_the_stated_conventions() -> None:
    stats = describe([agent("a", (100, 10)), agent("b", (10, 2), (20, 4), (30, 6))])
    assert astuple(stats.paper) == (2, 60, 7, 91, (100 + 10 + 32 + 66) / 4)
    assert (stats.request_append_tokens, stats.request_generate_tokens) == (40, 5.5)
    assert stats.longest_context_tokens == 110
    with pytest.raises(ConfigError):
        describe([])


def test_hits_are_whole_blocks_of_what_was_computed() -> None:
    """Prompts of 64, 65 + 63 and 192 tokens: the last generated token's KV is never computed."""
    hits = infinite_cache_hits([agent("a", (64, 1), (63, 65), (1, 1))])
    assert (hits.hit_blocks, hits.num_blocks) == (0 + 1 + 3, 1 + 2 + 3)
    alone = infinite_cache_hits([agent("a", (64, 1)), agent("b", (64, 1))])
    assert alone.hit_blocks == 0


def test_hits_count_a_groups_prefix_once() -> None:
    group = [agent(name, (200, 1), prefix=Prefix(64, 64, f"g/{name[0]}")) for name in ("a1", "a2", "b1")]
    assert infinite_cache_hits(group).hit_blocks == 0 + 2 + 1


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=30),
    st.floats(0.001, 4.0),
)
def test_scaling_keeps_sums(lengths: list[tuple[int, int]], factor: float) -> None:
    (one,) = scale([agent("a", *lengths, prefix=Prefix(lengths[0][0], 0, "g"))], factor)
    assert one.prefix is not None
    assert one.prefix.num_tokens <= one.rounds[0].append_tokens
    assert len(one.rounds) == len(lengths)
    for index, found in ((0, [r.append_tokens for r in one.rounds]), (1, [r.generate_tokens for r in one.rounds])):
        wanted = factor * sum(pair[index] for pair in lengths)
        assert min(found) >= 1
        assert wanted - 1 <= sum(found) <= wanted + len(lengths)
        if all(pair[index] * factor >= 1 for pair in lengths):
            assert abs(sum(found) - wanted) <= 1


def test_a_scaled_trace_keeps_its_shape() -> None:
    full, small = synthesize("64K", num_agents=60), load_trace("synth:64K", agents=60, scale=0.02)
    assert [len(one.rounds) for one in full] == [len(one.rounds) for one in small]
    ratio = describe(small).paper.context_tokens / describe(full).paper.context_tokens
    assert ratio == pytest.approx(0.02, rel=0.1)


def test_waits_and_rounds() -> None:
    (one,) = think_scale(limit_rounds([agent("a", (1, 1), (2, 2))], 1), 0.5)
    assert one == Trajectory("a", (Round(1, 1, 1.0),), start_s=2.0)


def test_more_agents_than_trajectories_are_the_papers_copies() -> None:
    originals = [agent(str(n), (10 + n, 5), (7, 3), prefix=Prefix(4, 4, "g")) for n in range(3)]
    agents = resample(originals, 40, seed=1)
    assert agents[:3] == originals
    assert agents == resample(originals, 40, seed=1) != resample(originals, 40, seed=2)
    assert len({one.id for one in agents}) == 40
    for copy in agents[3:]:
        assert copy.rounds[0].generate_tokens == 1
        assert copy.prefix is None
        assert copy.rounds[1:] in [one.rounds for one in originals]
    assert len({one.id for one in resample(agents, 60, seed=1)}) == 60


def test_fewer_agents_are_a_sample_in_order() -> None:
    originals = [agent(str(n), (n + 1, 1)) for n in range(20)]
    chosen = resample(originals, 5, seed=0)
    assert chosen == sorted(chosen, key=lambda one: int(one.id))
    assert len(chosen) == 5
    assert resample(originals, 20, seed=0) == originals


def test_sources_of_a_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_trajectories(path, [agent("a", (100, 10), (50, 10))])
    (one,) = load_trace(str(path), rounds=1, scale=0.1, think=0)
    assert one == Trajectory("a", (Round(10, 1),))
    assert len(load_trace(str(tmp_path), agents=4)) == 4
    assert len(load_trace("synth:32K", agents=502, rounds=2)) == 502
    assert load_trace("synth:32K", agents=3) != load_trace("synth:32K", agents=3, seed=1)


@pytest.mark.parametrize(
    ("source", "changes", "reason"),
    [
        ("synth:1M", {}, "no synthetic trace '1M': there are 32K, 48K, 64K"),
        ("/no/such", {}, "/no/such: No such file or directory"),
        ("synth:32K", {"agents": 0}, "agents: must be at least 1, not 0"),
        ("synth:32K", {"rounds": 0}, "rounds: must be at least 1, not 0"),
        ("synth:32K", {"scale": 0.0}, "scale: must be a finite number above 0"),
        ("synth:32K", {"scale": float("nan")}, "scale: must be a finite number above 0"),
        ("synth:32K", {"think": -1.0}, "think scale: must be a finite number of at least 0"),
        ("synth:32K", {"seed": -1}, "seed: must be at least 0, not -1"),
    ],
)
def test_values_out_of_range_are_refused(source: str, changes: dict[str, float], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_trace(source, **{"agents": 2, **changes})  # type: ignore[arg-type]
    assert reason in str(caught.value)


def test_trajectories_refuse_nonsense() -> None:
    for wrong in ({"append_tokens": 0}, {"generate_tokens": 0}, {"think_s": -1.0}, {"think_s": float("nan")}):
        with pytest.raises(ConfigError):
            replace(Round(1, 1), **wrong)  # type: ignore[arg-type]

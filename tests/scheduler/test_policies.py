"""The paper's choices as properties that hold for any cluster and any queue."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath.core.errors import ConfigError
from dualpath.core.ids import EngineId, NodeId
from dualpath.core.plan import Role
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.policy.decode_choice import (
    assign_decode,
    balance_limit_tokens,
    choose_group,
    fitting_tokens,
)
from dualpath.scheduler.policy.engine_load import EngineLoad, GroupId, group_of
from dualpath.scheduler.policy.least_loaded import LeastLoaded
from dualpath.scheduler.policy.path_choice import PATH_POLICIES, PathQuestion, path_policy
from dualpath.scheduler.policy.prefill_choice import PrefillLimits, PrefillRanking, choose_prefill

TOKENS = st.integers(0, 1000)
LENGTHS = st.lists(st.integers(1, 500), max_size=20)


def snapshot(number: int, role: Role, seq: int, tok: int, read_q: int, free: int) -> EngineLoad:
    engine = EngineLoad(EngineId(f"e{number}"), group_of(NodeId(f"n{number}"), role), free)
    engine.num_requests, engine.num_tokens, engine.read_queue_tokens = seq, tok, read_q
    return engine


def engines_of(role: Role, min_size: int = 0) -> st.SearchStrategy[list[EngineLoad]]:
    loads = st.lists(st.tuples(st.integers(0, 20), TOKENS, TOKENS, TOKENS), min_size=min_size, max_size=8)
    return loads.map(lambda rows: [snapshot(i, role, *row) for i, row in enumerate(rows)])


LIMITS = st.builds(PrefillLimits, alpha_tokens=TOKENS, beta_tokens=TOKENS)


# -- prefill ----------------------------------------------------------------------------------------------------------


def plainly_prefill(engines: list[EngineLoad], limits: PrefillLimits) -> EngineId | None:
    """Section 6 in one expression."""
    allowed = [e for e in engines if e.num_tokens <= limits.beta_tokens]
    best = min(allowed, key=lambda e: (e.read_queue_tokens > limits.alpha_tokens, e.num_tokens), default=None)
    return None if best is None else best.engine_id


@given(engines_of(Role.PREFILL), LIMITS)
def test_prefill_is_the_least_loaded_of_the_best_class(engines: list[EngineLoad], limits: PrefillLimits) -> None:
    chosen_id = choose_prefill(engines, limits)
    allowed = [e for e in engines if e.num_tokens <= limits.beta_tokens]
    if not allowed:
        assert chosen_id is None
        return
    assert chosen_id == plainly_prefill(engines, limits), "of equal ones the first"
    chosen = next(e for e in engines if e.engine_id == chosen_id)
    assert chosen in allowed
    short = [e for e in allowed if e.read_queue_tokens <= limits.alpha_tokens]
    assert chosen in (short or allowed)
    assert chosen.num_tokens == min(e.num_tokens for e in short or allowed)


LOADS = st.tuples(st.integers(0, 5), TOKENS, TOKENS, st.booleans())


@given(engines_of(Role.PREFILL, min_size=1), LIMITS, st.lists(LOADS, max_size=40))
def test_many_prefill_engines_are_chosen_from_like_few(
    engines: list[EngineLoad], limits: PrefillLimits, changes: list[tuple[int, int, int, bool]]
) -> None:
    """Loads and reading queues change, and engines come and go."""
    ranking, there = PrefillRanking(engines, limits), list(engines)
    for number, num_tokens, queue, moves in changes:
        engine = engines[number % len(engines)]
        engine.num_tokens, engine.read_queue_tokens = num_tokens, queue
        if not moves and engine in there:
            ranking.changed(engine)
        elif engine in there:
            there.remove(engine)
            ranking.remove(engine)
        else:
            there.append(engine)
            ranking.insert(engine)
        assert ranking.choose() == plainly_prefill(there, limits) == choose_prefill(there, limits)


# -- decode -----------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(max_size=3).map(GroupId), TOKENS, max_size=6))
def test_the_group_is_the_least_loaded(loads: dict[GroupId, int]) -> None:
    chosen = choose_group(loads)
    assert (chosen is None) == (not loads)
    assert chosen is None or loads[chosen] == min(loads.values())


CHANGES = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-300, 500)), max_size=60)


@given(st.dictionaries(st.sampled_from("abcd").map(GroupId), TOKENS, max_size=4), CHANGES)
def test_many_groups_are_chosen_from_like_few(loads: dict[GroupId, int], changes: list[tuple[str, int]]) -> None:
    """Tokens come and go, groups too: a change to below nothing removes the group, or brings it back."""
    heap = LeastLoaded({str(name): load for name, load in loads.items()})
    for name, change in changes:
        group_id = GroupId(name)
        if group_id not in loads:
            loads[group_id] = abs(change)
            heap.insert(group_id, abs(change))
        elif loads[group_id] + change < 0:
            del loads[group_id]
            heap.remove(group_id)
        else:
            loads[group_id] += change
            heap.add(group_id, change)
            assert heap[group_id] == loads[group_id]
        assert heap.choose() == min(loads, key=loads.__getitem__, default=None)
        assert len(heap) == len(loads)


@given(LENGTHS, TOKENS)
def test_r_is_the_longest_prefix_that_fits(lengths: list[int], free: int) -> None:
    prefixes = [sum(lengths[:count]) for count in range(len(lengths) + 1)]
    assert fitting_tokens(lengths, free) == max(total for total in prefixes if total <= free)


@given(LENGTHS, engines_of(Role.DECODE, min_size=1))
def test_decode_keeps_to_room_and_to_z(lengths: list[int], engines: list[EngineLoad]) -> None:
    limit = balance_limit_tokens(lengths, [e.num_tokens for e in engines], [e.free_device_tokens for e in engines])
    state = {e.engine_id: [e.num_requests, e.num_tokens, e.free_device_tokens] for e in engines}
    assigned = list(assign_decode(lengths, engines))
    for length, engine_id in zip(lengths, assigned, strict=False):
        seq, tok, free = state[engine_id]
        assert free >= length, "never an engine without room"
        roomy = [s for s in state.values() if s[2] >= length]
        balanced = [s for s in roomy if s[1] + length <= limit]
        if balanced:
            assert tok + length <= limit
            assert seq == min(s[0] for s in balanced)
        else:
            assert tok == min(s[1] for s in roomy)
        state[engine_id] = [seq + 1, tok + length, free - length]
    if len(assigned) < len(lengths):
        assert all(s[2] < lengths[len(assigned)] for s in state.values()), "ends only where none has room"


@given(LENGTHS, engines_of(Role.DECODE, min_size=1), st.randoms(use_true_random=False))
def test_decode_takes_only_what_it_may(lengths: list[int], engines: list[EngineLoad], random: Random) -> None:
    may = [[random.random() < 0.6 for _ in engines] for _ in lengths]
    free = [engine.free_device_tokens for engine in engines]
    numbers = {engine.engine_id: index for index, engine in enumerate(engines)}
    assigned = [numbers[e] for e in assign_decode(lengths, engines, lambda request, engine: may[request][engine])]
    for request, chosen in enumerate(assigned):
        assert may[request][chosen]
        assert free[chosen] >= lengths[request]
        free[chosen] -= lengths[request]
    if len(assigned) < len(lengths):
        first = len(assigned)
        assert not any(may[first][i] and free[i] >= lengths[first] for i in range(len(engines)))


@given(LENGTHS, engines_of(Role.DECODE, min_size=1))
def test_decode_that_may_take_everything_chooses_as_ever(lengths: list[int], engines: list[EngineLoad]) -> None:
    assert list(assign_decode(lengths, engines, lambda request, engine: True)) == list(assign_decode(lengths, engines))


def test_z_is_the_papers() -> None:
    assert balance_limit_tokens([200, 200, 200], tokens=[100, 200], free=[300, 200]) == pytest.approx(
        1.05 * (400 + 300) / 2
    )


def test_decode_without_engines_assigns_nothing() -> None:
    assert list(assign_decode([1, 2], [])) == []


# -- path -------------------------------------------------------------------------------------------------------------

QUESTIONS = st.builds(
    PathQuestion,
    num_hit_blocks=st.integers(0, 200),
    block_tokens=st.sampled_from([1, 16, 64]),
    prefill_queue_tokens=st.integers(0, 20_000),
    decode_queue_tokens=st.integers(0, 20_000),
    prefill_rate=st.floats(0.1, 10.0),
    decode_rate=st.floats(0.1, 10.0),
    sequence=st.integers(0, 9),
    prefill_is_stalled=st.just(False),
    decode_is_stalled=st.just(False),
)


@given(QUESTIONS, st.sampled_from(sorted(PATH_POLICIES)))
def test_every_policy_plans_every_block_once(question: PathQuestion, name: str) -> None:
    plan = path_policy(name)(question)
    assert plan.num_hit_blocks == question.num_hit_blocks
    assert plan.num_prefill_blocks + plan.num_decode_blocks == question.num_hit_blocks


@given(QUESTIONS, st.sampled_from(sorted(PATH_POLICIES)), st.booleans())
def test_no_policy_reads_from_storage_that_is_stalled(
    question: PathQuestion, name: str, prefill_is_stalled: bool
) -> None:
    plan = path_policy(name)(
        question._replace(prefill_is_stalled=prefill_is_stalled, decode_is_stalled=not prefill_is_stalled)
    )
    assert plan.num_hit_blocks == question.num_hit_blocks
    assert (plan.num_prefill_blocks if prefill_is_stalled else plan.num_decode_blocks) == 0
    nothing = path_policy(name)(question._replace(prefill_is_stalled=True, decode_is_stalled=True))
    assert nothing.num_hit_blocks == 0, "all is recomputed"


@given(QUESTIONS)
def test_shorter_reads_on_the_shorter_side(question: PathQuestion) -> None:
    plan = path_policy("shorter")(question)
    on_prefill = question.prefill_queue_tokens <= question.decode_queue_tokens
    assert (plan.num_decode_blocks if on_prefill else plan.num_prefill_blocks) == 0


@given(QUESTIONS)
def test_split_ends_both_queues_together_within_a_block(question: PathQuestion) -> None:
    q = question
    plan = path_policy("split")(q)
    prefill_end = (q.prefill_queue_tokens + plan.num_prefill_blocks * q.block_tokens) / q.prefill_rate
    decode_end = (q.decode_queue_tokens + plan.num_decode_blocks * q.block_tokens) / q.decode_rate
    slack = 0.5 * q.block_tokens * (1 / q.prefill_rate + 1 / q.decode_rate) + 1e-6 * (prefill_end + decode_end + 1)
    if plan.num_prefill_blocks:
        assert prefill_end <= decode_end + slack, "prefill does not end later than a block allows"
    if plan.num_decode_blocks:
        assert decode_end <= prefill_end + slack, "decode does not end later than a block allows"


def test_split_with_equal_rates_is_half_the_difference() -> None:
    plan = path_policy("split")(PathQuestion(10, 64, prefill_queue_tokens=0, decode_queue_tokens=4 * 64))
    assert plan.num_prefill_blocks == 7


def test_round_robin_alternates() -> None:
    paths = [path_policy("round_robin")(PathQuestion(4, 64, 0, 0, sequence=i)).path for i in range(4)]
    assert paths == ["prefill", "decode", "prefill", "decode"]


def test_an_unknown_policy_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="shorter"):
        SchedulerConfig(path_policy="fastest")

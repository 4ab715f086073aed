"""How many tokens come from outside, and what a step moves: the half of the connector in vLLM's scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from dualpath.core.ids import RequestId
from dualpath.core.plan import Role
from dualpath.vllm.messages import Load, Push, Save, attach
from dualpath.vllm.scheduler_half import SchedulerHalf

BLOCK = 128
XID = RequestId("x1")


@dataclass
class Asked:
    """A ``vllm.v1.request.Request``, as far as it is read."""

    num_prompt_tokens: int
    kv_transfer_params: dict[str, Any] | None = None
    request_id: str = "r1"
    all_token_ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.all_token_ids = list(range(self.num_prompt_tokens))

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)


def scheduled(
    *,
    new: dict[str, tuple[list[int], int, int]] | None = None,
    cached: dict[str, tuple[list[int], int, int]] | None = None,
    resumed: tuple[str, ...] = (),
    preempted: tuple[str, ...] = (),
) -> SimpleNamespace:
    """A ``SchedulerOutput``; values are (new block ids, tokens computed before, tokens of this step)."""
    new, cached = new or {}, cached or {}
    return SimpleNamespace(
        preempted_req_ids=set(preempted),
        scheduled_new_reqs=[
            SimpleNamespace(req_id=req_id, block_ids=(ids,), num_computed_tokens=done)
            for req_id, (ids, done, _) in new.items()
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(cached),
            new_block_ids=[(ids,) if ids else None for ids, _, _ in cached.values()],
            num_computed_tokens=[done for _, done, _ in cached.values()],
            resumed_req_ids=set(resumed),
        ),
        num_scheduled_tokens={req_id: num for req_id, (_, _, num) in {**new, **cached}.items()},
    )


def prefill(num_prompt: int, num_hit: int) -> tuple[SchedulerHalf, Asked]:
    return SchedulerHalf(Role.PREFILL, BLOCK), Asked(num_prompt, attach(XID, num_hit, range(num_prompt)))


def decode(num_prompt: int) -> tuple[SchedulerHalf, Asked]:
    half, request = SchedulerHalf(Role.DECODE, BLOCK), Asked(num_prompt, attach(XID, num_prompt, range(num_prompt)))
    request.all_token_ids.append(900)  # the first token stands in the decode server's prompt
    return half, request


def test_a_hit_is_loaded_in_the_step_and_the_whole_prompt_is_pushed() -> None:
    half, request = prefill(700, 512)
    assert half.matched(request, 0) == (512, False)
    ids = [10, 11, 12, 13, 14, 15]
    half.allocated(request, ids, 512)
    work = half.step(scheduled(new={"r1": (ids, 512, 188)}))
    assert work.loads == [Load("r1", XID, 0, (10, 11, 12, 13))]
    assert work.pushes == [Push("r1", XID, 0, tuple(ids), is_last=True)]
    assert half.finished("r1")
    assert not half.finished("r1")


def test_what_vllm_holds_itself_is_not_loaded_but_pushed() -> None:
    half, request = prefill(700, 512)
    assert half.matched(request, 256) == (256, False)
    half.allocated(request, [10, 11, 12, 13, 14, 15], 256)
    work = half.step(scheduled(new={"r1": ([10, 11, 12, 13, 14, 15], 512, 188)}))
    assert work.loads == [Load("r1", XID, 2, (12, 13))]
    assert work.pushes[0].first_block == 0


@pytest.mark.parametrize(("num_prompt", "num_hit", "expected"), [(512, 512, 384), (513, 512, 512), (700, 300, 256)])
def test_the_last_token_is_always_computed_and_blocks_are_whole(num_prompt: int, num_hit: int, expected: int) -> None:
    half, request = prefill(num_prompt, num_hit)
    assert half.matched(request, 0) == (expected, False)


def test_blocks_are_pushed_once_as_chunks_complete_them() -> None:
    half, request = prefill(700, 0)
    assert half.matched(request, 0) == (0, False)
    half.allocated(request, [1, 2, 3], 0)
    steps = [
        half.step(scheduled(new={"r1": ([1, 2, 3], 0, 300)})),
        half.step(scheduled(cached={"r1": ([4], 300, 84)})),
        half.step(scheduled(cached={"r1": ([], 384, 10)})),
        half.step(scheduled(cached={"r1": ([5, 6], 394, 306)})),
        half.step(scheduled(cached={"r1": ([], 700, 1)})),
    ]
    assert [[(p.first_block, p.block_ids, p.is_last) for p in step.pushes] for step in steps] == [
        [(0, (1, 2), False)],
        [(2, (1, 2, 3), False)],
        [],
        [(3, (1, 2, 3, 4, 5, 6), True)],
        [],
    ]


def test_after_a_failed_load_all_is_pushed_again() -> None:
    half, request = prefill(700, 512)
    half.matched(request, 0)
    half.allocated(request, [1, 2, 3, 4, 5, 6], 512)
    half.step(scheduled(new={"r1": ([1, 2, 3, 4, 5, 6], 512, 188)}))
    half.failed({"r1", "somebody else"})
    work = half.step(scheduled(cached={"r1": ([], 0, 700)}))
    assert not work.loads
    assert work.pushes == [Push("r1", XID, 0, (1, 2, 3, 4, 5, 6), is_last=True)]


def test_a_prompt_that_was_preempted_is_loaded_and_pushed_anew() -> None:
    half, request = prefill(700, 256)
    half.matched(request, 0)
    half.allocated(request, [1, 2, 3], 256)
    half.step(scheduled(new={"r1": ([1, 2, 3], 256, 128)}))
    told = half.step(scheduled(preempted=("r1", "r9"))).preempted
    assert told == ("r1", "r9"), "one that was given up since may have blocks that are still copied out"
    assert half.matched(request, 0) == (256, False)
    half.allocated(request, [7, 8, 9, 10, 11, 12], 256)
    work = half.step(scheduled(cached={"r1": ([7, 8, 9, 10, 11, 12], 256, 444)}, resumed=("r1",)))
    assert work.loads == [Load("r1", XID, 0, (7, 8))]
    assert work.pushes == [Push("r1", XID, 0, (7, 8, 9, 10, 11, 12), is_last=True)]


def test_the_prompt_is_taken_once_beside_the_steps() -> None:
    half, request = decode(700)
    assert half.matched(request, 0) == (700, True)
    half.allocated(request, [1, 2, 3, 4, 5, 6], 700)
    work = half.step(scheduled())
    assert work.loads == [Load("r1", XID, 0, (1, 2, 3, 4, 5, 6))]
    assert half.matched(request, 0) == (0, False), "preempted, or failed: vLLM computes it"
    assert not half.finished("r1"), "nothing of ours reads its blocks: vLLM waits for the take by itself"


def test_a_prompt_that_vllm_holds_itself_is_told_once() -> None:
    half, request = decode(256)
    assert half.matched(request, 256) == (0, False)
    half.allocated(request, [1, 2, 3], 0)
    work = half.step(scheduled(new={"r1": ([1, 2, 3], 256, 1)}))
    assert (work.loads, work.unneeded) == ([], [XID])
    half.step(scheduled(preempted=("r1",)))
    assert half.matched(request, 0) == (0, False), "its slots are somebody else's: vLLM computes it"
    half.allocated(request, [4, 5, 6], 0)
    assert half.step(scheduled()).unneeded == []


def test_blocks_that_fill_while_decoding_are_saved_once() -> None:
    half, request = decode(700)
    half.matched(request, 0)
    half.allocated(request, [1, 2, 3, 4, 5, 6], 700)
    half.step(scheduled())
    saves = list(half.step(scheduled(new={"r1": ([1, 2, 3, 4, 5, 6], 700, 1)})).saves)
    for _ in range(80):
        request.all_token_ids.append(901)
        saves += half.step(scheduled(cached={"r1": ([], request.num_tokens - 1, 1)})).saves
    tokens = (*range(640, 700), 900, *[901] * 67)
    assert saves == [Save("r1", XID, 5, 6, tokens)]
    assert half.finished("r1")


def test_a_prompt_of_whole_blocks_is_followed_by_the_next_one() -> None:
    half, request = decode(256)
    half.matched(request, 0)
    half.allocated(request, [1, 2], 256)
    half.step(scheduled())
    request.all_token_ids += [901] * 127
    work = half.step(scheduled(new={"r1": ([1, 2, 3], 256, 128)}))
    assert [(save.block, save.block_id) for save in work.saves] == [(2, 3)]


@pytest.mark.parametrize(
    "params",
    [None, {"other": 1}, {"dualpath": "x"}, {"dualpath": {"v": 99, "xid": "a", "num_tokens": 5}}],
    ids=str,
)
def test_what_is_none_of_ours_is_left_to_vllm(params: dict[str, Any] | None) -> None:
    for role in Role:
        half, request = SchedulerHalf(role, BLOCK), Asked(700, params)
        assert half.matched(request, 0) == (0, False)
        half.allocated(request, [1, 2, 3, 4, 5, 6], 0)
        work = half.step(scheduled(new={"r1": ([1, 2, 3, 4, 5, 6], 0, 700)}))
        assert [*work.loads, *work.pushes, *work.saves] == []
        assert not half.finished("r1")


def test_more_than_there_is_cannot_be_taken() -> None:
    half = SchedulerHalf(Role.DECODE, BLOCK)
    assert half.matched(Asked(10, attach(XID, 5000, range(10))), 0) == (10, True)


@pytest.mark.parametrize("role", Role)
def test_kv_of_another_prompt_is_not_taken_for_this_ones(role: Role) -> None:
    half, request = SchedulerHalf(role, BLOCK), Asked(700, attach(XID, 512, [*range(699), 5]))
    assert half.matched(request, 0) == (0, False)
    half.allocated(request, [1, 2, 3, 4, 5, 6], 0)
    work = half.step(scheduled(new={"r1": ([1, 2, 3, 4, 5, 6], 0, 700)}))
    assert (work.refused, work.loads, work.pushes) == ([XID], [], [])
    assert half.step(scheduled()).refused == []


def test_a_request_is_refused_once_however_often_vllm_asks_and_anew_when_it_comes_again() -> None:
    half, request = SchedulerHalf(Role.PREFILL, BLOCK), Asked(700, attach(XID, 512, [*range(699), 5]))
    for _ in range(3):  # no room for it yet
        assert half.matched(request, 0) == (0, False)
    assert half.step(scheduled()).refused == [XID]
    half.matched(request, 0)
    assert half.step(scheduled()).refused == []
    assert not half.finished("r1")
    half.matched(request, 0)
    assert half.step(scheduled()).refused == [XID]


@pytest.mark.parametrize("params", [None, {"dualpath": "x"}], ids=["none", "wrong"])
def test_what_is_not_ours_is_forgotten_at_its_end(params: dict[str, Any] | None) -> None:
    half = SchedulerHalf(Role.DECODE, BLOCK)
    for number in range(3):
        half.matched(Asked(700, params, f"r{number}"), 0)
        half.finished(f"r{number}")
    assert not half._not_ours


def test_parameters_of_another_version_end_the_hand_over() -> None:
    half = SchedulerHalf(Role.PREFILL, BLOCK)
    told = attach(XID, 512, range(700))["dualpath"]
    assert half.matched(Asked(700, {"dualpath": told | {"v": 2}}), 0) == (0, False)
    assert half.step(scheduled()).refused == [XID]


def test_a_prefill_server_is_asked_for_the_whole_prompt_and_no_more() -> None:
    half = SchedulerHalf(Role.PREFILL, BLOCK)
    assert half.matched(Asked(700, attach(XID, 512, range(690))), 0) == (0, False)
    assert half.step(scheduled()).refused == [XID]

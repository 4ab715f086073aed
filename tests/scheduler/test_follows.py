"""Who follows whom: token for token, whatever block boundaries do."""

from __future__ import annotations

import pytest

from dualpath.core.ids import BlockKey, RequestId
from dualpath.core.keys import KnownPrefixes
from dualpath.core.request import Request, SamplingParams
from dualpath.core.runtime import SystemRuntime
from dualpath.scheduler.blocks import BlockHashes
from dualpath.scheduler.follows import EndedTurns
from dualpath.scheduler.job import Job, new_job

BLOCK, ROOT = 4, BlockKey(b"\0" * 16)


def job(name: str, prompt: list[int], answer: list[int] = ()) -> Job:  # type: ignore[assignment]
    request = Request(RequestId(name), tuple(prompt), SamplingParams(max_tokens=8))
    made = new_job(request, 0, SystemRuntime(), lambda _: None)
    made.block_hashes = BlockHashes(ROOT, request.prompt_token_ids, BLOCK, KnownPrefixes(BLOCK))
    for token in answer:
        made.block_hashes.append(token)
        made.generated.append(token)
    return made


@pytest.mark.parametrize("num_prompt", range(5, 13))
@pytest.mark.parametrize("num_answer", [1, 3, 5])
def test_a_next_turn(num_prompt: int, num_answer: int) -> None:
    turns = EndedTurns(BLOCK)
    prompt, answer = list(range(num_prompt)), list(range(100, 100 + num_answer))
    turns.ended(job("a", prompt, answer))
    assert turns.followed(job("b", [*prompt, *answer, 7])) == "a"
    assert turns.followed(job("b", [*prompt, *answer[:-1], 7, 8])) == "a"  # the answer's last token is not repeated
    if num_answer > 1:
        assert turns.followed(job("b", [*prompt, 55, *answer[1:], 7])) is None
    assert turns.followed(job("b", prompt)) is None


def test_the_longest_then_the_latest() -> None:
    turns = EndedTurns(BLOCK)
    turns.ended(job("first", [1, 2, 3, 4], [5]))
    turns.ended(job("second", [1, 2, 3, 4, 5, 6, 7, 8], [9]))
    turns.ended(job("same", [1, 2, 3, 4, 5, 6, 7, 8], [9]))
    assert turns.followed(job("next", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])) == "same"
    assert turns.followed(job("other", [1, 2, 3, 4, 5, 6])) == "first"


def test_short_prompts_have_no_names() -> None:
    turns = EndedTurns(BLOCK)
    turns.ended(job("a", [1, 2], [3]))
    assert turns.followed(job("b", [1, 2, 3, 4, 5])) is None

"""Two real vLLM servers of two ranks each answer as plain vLLM does, on every path, also where one rank fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vllm.live import Turn, VllmPair, ask_first_turns, live, running

from dualpath.store.ranked import RankedStore

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

HIT_TOKENS = 1408
_TWO = ("--tensor-parallel-size", "2")


@pytest.fixture(scope="module")
def ranked(vllm_model: Path, talks: list[list[Turn]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmPair]:
    options = {"prefill": ("--max-num-batched-tokens", "512", *_TWO), "decode": _TWO}
    yield from running(VllmPair(vllm_model, tmp_path_factory.mktemp("vllm") / "ranked", options=options))


@pytest.fixture(scope="module")
def stored(ranked: VllmPair, talks: list[list[Turn]]) -> list[list[Turn]]:
    return asyncio.run(ask_first_turns(ranked, talks))


@pytest.fixture(autouse=True)
def _empty_caches(ranked: VllmPair) -> None:
    for server in ranked.servers:
        server.reset_prefix_cache()


@pytest.mark.parametrize("path", ["prefill", "decode", "split"])
async def test_the_second_turn_is_what_plain_vllm_says(ranked: VllmPair, stored: list[list[Turn]], path: str) -> None:
    turn = stored[1][1]
    async with live(ranked, path, max_retries=0) as service:
        assert isinstance(service.store, RankedStore)
        tokens, record = await service.ask(turn)
        await service.idle()
    assert tokens == turn.answer
    assert (record.path, record.num_hit_tokens, record.num_recomputed_blocks) == (path, HIT_TOKENS, 0)


@pytest.mark.parametrize("path", ["prefill", "decode"])
async def test_a_load_that_fails_in_one_rank_is_computed_by_all(
    ranked: VllmPair, stored: list[list[Turn]], path: str
) -> None:
    turn = stored[1][1]
    async with live(ranked, path, max_retries=0) as service:
        tokens, record = await service.ask(turn, "half")
        await service.idle()
    assert tokens == turn.answer
    assert record.num_hit_tokens == HIT_TOKENS


async def test_wrong_kv_makes_other_tokens(ranked: VllmPair, stored: list[list[Turn]]) -> None:
    """Or these tests would show nothing."""
    async with live(ranked, "prefill", max_retries=0) as service:
        tokens, _ = await service.ask(stored[1][1], "wrong")
        await service.idle()
    assert tokens != stored[1][1].answer


async def test_eight_at_once(ranked: VllmPair, stored: list[list[Turn]]) -> None:
    turns = [talk[1] for talk in stored for _ in range(4)]
    async with live(ranked, "split", max_retries=0) as service:
        answers = await asyncio.gather(*(service.ask(turn) for turn in turns))
        await service.idle()
    assert [tokens for tokens, _ in answers] == [turn.answer for turn in turns]


async def test_weights_change_in_all_ranks(ranked: VllmPair, stored: list[list[Turn]]) -> None:
    """To the same by another name: their blocks are found."""
    turn = stored[0][1]
    async with live(ranked, "split", max_retries=0) as service:
        await service.update(ranked.model)
        tokens, record = await service.ask(turn)
        await service.idle()
    assert tokens == turn.answer
    assert record.num_hit_tokens > 0

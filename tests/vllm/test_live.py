"""Two real vLLM servers answer as plain vLLM does, on every path, whatever fails."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.vllm.live import Live, Turn, VllmPair, ask_first_turns, live

from dualpath.core.keys import chain_keys, root_key
from dualpath.store.header import parse_header

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

PATHS = ("prefill", "decode", "split")
HIT_TOKENS = 1408  # of the second conversation's second turn: its last token has no KV yet, a block has 128


@pytest.fixture(scope="module")
def stored(pair: VllmPair, talks: list[list[Turn]]) -> list[list[Turn]]:
    """First turns have been asked."""
    return asyncio.run(ask_first_turns(pair, talks))


@pytest.fixture(autouse=True)
def _empty_caches(pair: VllmPair) -> None:
    """vLLM's own prefix caches would take the loads under test away."""
    for server in pair.servers:
        server.reset_prefix_cache()


def _grown(before: dict[str, Any], after: dict[str, Any], engine_id: str) -> dict[str, int]:
    then, now = before[engine_id].kv_transfer_bytes, after[engine_id].kv_transfer_bytes
    return {name: now[name] - then.get(name, 0) for name in now}


async def test_what_is_stored_is_plain_vllms_kv_bit_by_bit(pair: VllmPair, stored: list[list[Turn]]) -> None:
    """Prompts and what was decoded. No hits: forwards had the same shapes."""
    async with live(pair) as service:
        geometry, root = service.namespace.geometry, root_key(service.namespace)
        for talk in stored:
            turn = talk[0]
            keys = chain_keys(root, (*turn.prompt, *turn.answer[:-1]), geometry.block_tokens)
            assert len(keys) == len(turn.digests) > len(turn.prompt) // geometry.block_tokens
            files = [Path(service.store.path_of(key)) for key in keys]  # type: ignore[attr-defined]  # a FileStore
            assert [_digests(file) for file in files] == list(turn.digests)


def _digests(file: Path) -> tuple[int, ...]:
    """As the header has them: reads compare the payload with it."""
    return tuple(parse_header(file.read_bytes()).digests.tolist())


@pytest.mark.parametrize("path", PATHS)
async def test_the_second_turn_is_what_plain_vllm_says(pair: VllmPair, stored: list[list[Turn]], path: str) -> None:
    turn = stored[1][1]
    async with live(pair, path, max_retries=0) as service:
        before = await service.stats()
        tokens, record = await service.ask(turn)
        await service.idle()
        after = await service.stats()
        geometry = service.namespace.geometry
    assert tokens == turn.answer
    assert (record.path, record.num_hit_tokens, record.num_recomputed_blocks) == (path, HIT_TOKENS, 0)
    read = {role: num // service.index.object_bytes for role, num in record.storage_read_bytes.items()}
    shares = {"prefill": (11, 0), "decode": (0, 11), "split": (6, 5)}[path]
    assert (read["prefill"], read["decode"]) == shares
    pushed = (geometry.blocks_for(len(turn.prompt)) - shares[1]) * (geometry.full_block_bytes + 4096)
    pulled = shares[1] * (geometry.full_block_bytes + 4096)
    assert _grown(before, after, "p0") == {"decode_to_prefill": pulled, "prefill_to_decode": pushed}
    assert all(engine.kv_corrupt == 0 for engine in after.values())


async def test_turns_follow_each_other_at_once(pair: VllmPair, stored: list[list[Turn]]) -> None:
    """The blocks that an answer has filled are hits of the next turn, however soon it comes."""
    for talk in stored:
        for number, (before, turn) in enumerate(pairwise(talk)):
            async with live(pair, PATHS[number % 3], max_retries=0) as service:
                tokens, record = await service.ask(before)
                assert tokens == before.answer
                tokens, record = await service.ask(turn)
                assert tokens == turn.answer
                num_kv = len(before.prompt) + len(before.answer) - 1  # the last token's is computed with the next one
                assert record.num_hit_tokens == num_kv // 128 * 128
                await service.idle()


async def test_what_the_prefill_server_holds_itself_is_not_loaded(pair: VllmPair, stored: list[list[Turn]]) -> None:
    turn = stored[1][1]
    body = {"token_ids": turn.prompt[:600], "sampling_params": {"max_tokens": 1, "temperature": 0.0}}
    for path in PATHS:
        pair.prefill.reset_prefix_cache()
        pair.prefill.post("/inference/v1/generate", body)  # four blocks
        async with live(pair, path, max_retries=0) as service:
            before = await service.stats()
            tokens, record = await service.ask(turn)
            after = await service.stats()
        assert tokens == turn.answer
        assert record.num_hit_tokens == HIT_TOKENS
        if path == "decode":
            num_blocks = _grown(before, after, "p0")["decode_to_prefill"] / (service.index.object_bytes)
            assert num_blocks == 11 - 4


async def test_a_prompt_that_the_decode_server_holds_itself_keeps_no_slots(
    pair: VllmPair, stored: list[list[Turn]]
) -> None:
    """vLLM asks for nothing then: what was staged for it is free while it decodes."""
    turn = Turn(
        stored[1][1].prompt[:HIT_TOKENS], (0,) * 400
    )  # whole blocks; an answer that is not over at the first look
    async with live(pair, "split", max_retries=0) as service:
        first, _ = await service.ask(turn)
        await service.idle()
        held, tokens, seen = pair.decode.metric("vllm:prefix_cache_hits_total"), [], []
        async for event in service.service.generate(service.request(turn)):
            tokens.append(event.token_id)
            used = (await service.stats())["d0"].staging_slots_used
            seen.append((used, await asyncio.to_thread(pair.decode.metric, "vllm:generation_tokens_total")))
        await service.idle()
    assert tuple(tokens) == first
    assert pair.decode.metric("vllm:prefix_cache_hits_total") - held == HIT_TOKENS
    num_made = pair.decode.metric("vllm:generation_tokens_total")
    assert any(used == 0 and made < num_made for used, made in seen), seen


@pytest.mark.parametrize("path", PATHS)
async def test_a_hit_whose_load_fails_is_computed(pair: VllmPair, stored: list[list[Turn]], path: str) -> None:
    turn = stored[1][1]
    async with live(pair, path, max_retries=0) as service:
        tokens, record = await service.ask(turn, "fail")
        await service.idle()
    assert tokens == turn.answer
    assert record.outcome == "finished"
    assert "a test's fault" in pair.prefill.tail(200_000)


async def test_kv_of_another_block_changes_the_answer(pair: VllmPair, stored: list[list[Turn]]) -> None:
    """The answers depend on what is loaded: else the tests above would prove nothing."""
    turn = stored[1][1]
    async with live(pair, "split", max_retries=0) as service:
        tokens, _ = await service.ask(turn, "wrong")
    assert tokens != turn.answer


async def test_eight_at_once(pair: VllmPair, stored: list[list[Turn]]) -> None:
    turns = [stored[number % 2][1 + number % 4 // 2] for number in range(8)]
    async with live(pair, "split") as service:
        answers = await asyncio.gather(*(service.ask(turn) for turn in turns))
        await service.idle()
    assert [tokens for tokens, _ in answers] == [turn.answer for turn in turns]


async def _give_up(service: Live, turn: Turn, num_tokens: int, after_s: float) -> None:
    """After so many tokens, or so long."""
    tokens = service.service.generate(service.request(turn, "gone"))
    with suppress(TimeoutError):
        async with asyncio.timeout(after_s):
            for _ in range(num_tokens):
                await anext(tokens)
    await tokens.aclose()


async def test_requests_that_are_given_up_leave_nothing(pair: VllmPair, stored: list[list[Turn]]) -> None:
    turn = Turn(stored[1][1].prompt, (0,) * 200)
    async with live(pair, "split") as service:
        for num_tokens in (1, 5):
            await _give_up(service, turn, num_tokens, 30.0)
        for after_s in (0.01, 0.03, 0.06, 0.1, 0.3):
            await _give_up(service, turn, 999, after_s)
        await service.idle()
        tokens, _ = await service.ask(stored[1][1])
        await service.idle()
    assert tokens == stored[1][1].answer


STRANGE: list[dict[str, Any]] = [
    {"v": 1},
    {"v": 99, "xid": "x", "num_tokens": 128, "num_prompt_tokens": 200, "prompt_digest": ""},
    {"v": 1, "xid": "x", "num_tokens": -1, "num_prompt_tokens": 200, "prompt_digest": ""},
    {"v": 1, "xid": "x", "num_tokens": 128, "num_prompt_tokens": 200, "prompt_digest": "another's"},
]


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_what_a_stranger_makes_up_changes_no_answer(pair: VllmPair, stored: list[list[Turn]], role: str) -> None:
    """Whoever reaches vLLM's own port is answered, and told of once."""
    server, prompt = getattr(pair, role), stored[1][0].prompt[:200]
    body = {"token_ids": prompt, "sampling_params": {"max_tokens": 20, "temperature": 0.0, "ignore_eos": True}}
    before, answers = server.log.read_text(errors="replace").count("is served without DualPath"), []
    for made_up in ({}, *({"kv_transfer_params": {"dualpath": told}} for told in STRANGE)):
        (choice,) = json.loads(server.post("/inference/v1/generate", body | made_up))["choices"]
        answers.append(choice["token_ids"])
    assert answers == [answers[0]] * 5
    assert server.log.read_text(errors="replace").count("is served without DualPath") - before == len(STRANGE)


def _damage(file: Path) -> None:
    sound = file.read_bytes()
    file.write_bytes(sound[:5000] + bytes([sound[5000] ^ 1]) + sound[5001:])


@pytest.mark.parametrize("path", PATHS)
async def test_a_damaged_block_is_found_and_computed(pair: VllmPair, stored: list[list[Turn]], path: str) -> None:
    turn = stored[1][1]
    async with live(pair, path, max_retries=0) as service:
        geometry = service.namespace.geometry
        key = chain_keys(root_key(service.namespace), turn.prompt, geometry.block_tokens)[4]
        _damage(Path(service.store.path_of(key)))  # type: ignore[attr-defined]  # a FileStore
        tokens, record = await service.ask(turn)
        await service.idle()
        again, later = await service.ask(turn)
    assert tokens == again == turn.answer
    assert record.num_recomputed_blocks == 11 - 4
    assert record.num_hit_tokens == 4 * geometry.block_tokens
    assert later.num_hit_tokens == HIT_TOKENS, "it was stored anew"

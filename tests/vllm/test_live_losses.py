"""What real servers lose: KV to other requests, each other by kill -9, their storage. Answers stay right."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.vllm.live import Live, Turn, VllmPair, live
from tests.vllm.servers import VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]
_ROUNDS = 5

OTHER_ROPE = json.dumps({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}})
PATIENT = {"max_retries": 100, "retry_budget_s": 300.0, "pause_max_s": 1.0, "probe_interval_s": 0.5}


async def test_requests_that_vllm_preempts_are_answered_all_the_same(pair: VllmPair, talks: list[list[Turn]]) -> None:
    before = pair.decode.metric("vllm:num_preemptions_total")
    async with live(pair, "split", expected_output_tokens=0) as service:
        for round_ in range(_ROUNDS):  # where prompts come slowly, few requests are decoded at once
            tenants = [f"tenant {round_} {number}" for number in range(8)]  # who share no KV
            answers = await asyncio.gather(*(service.ask(talks[0][0], cache_salt=salt) for salt in tenants))
            await service.idle()
            assert {tokens for tokens, _ in answers} == {talks[0][0].answer}
            if pair.decode.metric("vllm:num_preemptions_total") > before:
                return
    pytest.fail(f"nothing was preempted in {_ROUNDS} rounds")


async def _asked_while(
    service: Live, turn: Turn, num_tokens: int, happens: Callable[[], Awaitable[None]]
) -> tuple[int, ...]:
    """The answer, while something happens after so many of its tokens."""
    tokens = []
    async for event in service.service.generate(service.request(turn)):
        tokens.append(event.token_id)
        if len(tokens) == num_tokens:
            happening = asyncio.create_task(happens())
    await happening
    return tuple(tokens)


async def _kill_and_start(server: VllmServer) -> None:
    await asyncio.to_thread(server.kill)
    server.start()
    await asyncio.to_thread(server.wait)


async def test_an_answer_goes_on_when_its_decode_server_was_killed(pair: VllmPair, talks: list[list[Turn]]) -> None:
    async with live(pair, "split", **PATIENT) as service:
        tokens = await _asked_while(service, talks[1][0], 20, lambda: _kill_and_start(pair.decode))
        await service.idle()
    assert tokens == talks[1][0].answer


async def test_a_prefill_server_that_was_killed_takes_up_where_it_was(pair: VllmPair, talks: list[list[Turn]]) -> None:
    turn = talks[1][1]
    async with live(pair, "split", **PATIENT) as service:
        asking = asyncio.create_task(service.ask(turn))
        await asyncio.sleep(0)
        await _kill_and_start(pair.prefill)
        tokens, _ = await asking
        assert tokens == turn.answer
        again, record = await service.ask(turn)
        await service.idle()
    assert again == turn.answer
    assert record.num_hit_tokens > 0, "what both have stored before is still theirs"


async def test_a_decode_server_that_comes_back_as_another_is_not_used(pair: VllmPair, talks: list[list[Turn]]) -> None:
    """Its KV has the former one's shape, and other bytes."""
    turn, usual, seen = talks[1][0], pair.decode.options, list[bool]()
    async with live(pair, "split", **PATIENT | {"retry_budget_s": 600.0}) as service:

        async def another_for_a_while() -> None:
            pair.decode.options = (*usual, "--hf-overrides", OTHER_ROPE)
            try:
                await _kill_and_start(pair.decode)
            finally:
                pair.decode.options = usual
            while service.links[1].report.namespace == service.namespace:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            for _ in range(4):  # a lost engine is asked every half a second
                await asyncio.sleep(1.0)
                seen.append("d0" in await service.stats())
            await _kill_and_start(pair.decode)

        tokens = await _asked_while(service, turn, 20, another_for_a_while)
        await service.idle()
        assert service.links[1].report.namespace == service.namespace
    assert tokens == turn.answer
    assert seen == [False] * 4


@contextmanager
def _without(store: Path) -> Iterator[None]:
    away = store.with_name("away")
    store.rename(away)
    try:
        yield
    finally:
        if store.exists():
            store.rename(store.with_name("made meanwhile"))
        away.rename(store)


async def test_without_storage_everything_is_computed(pair: VllmPair, talks: list[list[Turn]]) -> None:
    assert pair.prefill.settings is not None
    turn = talks[1][1]
    async with live(pair, "split") as service:
        with _without(Path(pair.prefill.settings.store_url.removeprefix("file://"))):
            tokens, record = await service.ask(turn)
            await service.idle()
    assert tokens == turn.answer
    assert record.num_hit_tokens == 0
    async with live(pair, "split") as service:
        tokens, record = await service.ask(turn)
        await service.idle()
    assert tokens == turn.answer
    assert record.num_hit_tokens > 0

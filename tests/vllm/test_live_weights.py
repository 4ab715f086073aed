"""Two real vLLM servers get other weights by us: then they answer as plain vLLM does that was started with those."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.vllm.live import Turn, VllmPair, ask_oracle, live, new_tokens
from tests.vllm.test_live_passthrough import open_doors

from dualpath.core.errors import WeightsError
from dualpath.core.pause import PauseMode
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.models.noise import add_noise

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

NUM_LONG = 400


@pytest.fixture(scope="module")
def noisy(vllm_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_noise(vllm_model, tmp_path_factory.mktemp("weights") / "noisy", scale=0.1)


@pytest.fixture(autouse=True)
def _back(pair: VllmPair, vllm_model: Path) -> Iterator[None]:
    """Other tests begin with the start's."""
    yield

    async def go_back() -> None:
        async with live(pair) as service:
            await service.update(vllm_model)

    asyncio.run(go_back())


def _plain(model: Path, prompt: tuple[int, ...], num_tokens: int, *more: tuple[list[int], int]) -> list[Turn]:
    """What plain vLLM says that was started with ``model``; ``more``: turns behind the first."""
    turns: list[dict[str, Any]] = [{"tokens": list(prompt), "num_tokens": num_tokens}]
    turns += [{"tokens": tokens, "num_tokens": count} for tokens, count in more]
    return ask_oracle(model, [turns])[0]


async def test_turns_before_and_after_an_update_and_a_step_back(
    pair: VllmPair, talks: list[list[Turn]], vllm_model: Path, noisy: Path
) -> None:
    first, second = talks[0][:2]
    again, third = _plain(noisy, second.prompt, 40, (new_tokens(77, 40), 40))
    assert again.answer != second.answer
    async with live(pair, "split", max_retries=0) as service:
        assert (await service.ask(first))[0] == first.answer
        with pytest.raises(WeightsError, match="no such directory"):
            await service.update(noisy / "none")
        assert (await service.ask(second))[0] == second.answer
        version = await service.update(noisy)

        hits = [server.metric("vllm:prefix_cache_hits_total") for server in pair.servers]
        tokens, record = await service.ask(Turn(again.prompt, again.answer))
        assert tokens == again.answer
        assert (record.num_hit_tokens, record.weight_versions[-1].version) == (0, version)
        assert [server.metric("vllm:prefix_cache_hits_total") for server in pair.servers] == hits
        tokens, record = await service.ask(Turn(third.prompt, third.answer))
        assert tokens == third.answer
        assert record.num_hit_tokens == (len(again.prompt) + len(again.answer) - 1) // 128 * 128

        await service.update(vllm_model)  # by another name; what was stored for them before is theirs
        tokens, record = await service.ask(second)
        assert tokens == second.answer
        assert record.num_hit_tokens == (len(first.prompt) + len(first.answer) - 1) // 128 * 128
        await service.idle()


@pytest.mark.parametrize("is_kept", [False, True])
async def test_a_request_goes_on_by_the_new_weights_from_the_token_where_they_came(
    pair: VllmPair, vllm_model: Path, noisy: Path, is_kept: bool
) -> None:
    prompt = tuple(new_tokens(990 + is_kept, 300))
    async with live(pair, "split", max_retries=0) as service:
        request = service.request(Turn(prompt, (0,) * NUM_LONG))
        tokens: list[int] = []

        async def listen() -> None:
            async for event in service.service.generate(request):
                tokens.append(event.token_id)

        listening = asyncio.create_task(listen())
        while len(tokens) < 20:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        control = service.service.control
        if is_kept:
            await control.pause(PauseMode.KEEP)
        version = await service.update(noisy)
        if is_kept:
            await control.resume()
        await listening
        record = service.service.record(request.request_id)
        assert record is not None
        old, new = record.weight_versions
        assert (old.end, new.version, new.end) == (new.start, version, NUM_LONG)
        before = tuple(tokens[: new.start])
        await service.idle()
    assert _plain(vllm_model, prompt, len(before))[0].answer == before
    (after,) = _plain(noisy, (*prompt, *before), NUM_LONG - len(before))
    assert after.answer == tuple(tokens[len(before) :])


async def test_an_answer_that_passes_through_goes_on_and_leaves_nothing_for_the_next(
    pair: VllmPair, vllm_model: Path, noisy: Path
) -> None:
    ask: dict[str, Any] = {"model": str(vllm_model), "messages": [{"role": "user", "content": "Tell me. " * 40}]}
    ask |= {"max_tokens": NUM_LONG, "temperature": 0, "extra_body": {"ignore_eos": True}}
    async with open_doors(pair, Tokenizer.load(vllm_model), "split") as doors, httpx.AsyncClient(timeout=60) as http:
        stream = await doors.openai(doors.ours).chat.completions.create(
            stream=True, stream_options={"include_usage": True}, **ask
        )
        num_pieces, usage, reason = 0, None, None
        async for chunk in stream:
            num_pieces += 1
            usage = chunk.usage or usage
            reason = reason or (chunk.choices[0].finish_reason if chunk.choices else None)
            if num_pieces == 20:
                answer = await http.post(f"{doors.ours}/update_weights", json={"weight_dir": str(noisy)})
                assert answer.status_code == 200, answer.text
        assert usage is not None
        assert (usage.completion_tokens, reason) == (NUM_LONG, "length")
        await doors.service.idle()

        async def text(url: str) -> str | None:
            said = await doors.openai(url).chat.completions.create(**ask | {"max_tokens": 30})
            return said.choices[0].message.content

        ours = await text(doors.ours)  # first: what vLLM itself has kept would be a hit
        await doors.service.idle()
        assert doors.hits()[-1] == 0
        await asyncio.to_thread(pair.decode.reset_prefix_cache)
        assert ours == await text(pair.decode.url)

"""The unmodified service over vLLM servers: tokens, paths, failures and aborts, with fakes behind HTTP and the line."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.scheduler.fixtures import BLOCK, NAMESPACE, keys_of, make_request
from tests.vllm.fake_server import answer_to
from tests.vllm.pair import FAST, pair, until

from dualpath.core.errors import EngineLostError, InvalidRequestError, PathBrokenError
from dualpath.core.request import FinishReason, Request

PROMPT = tuple(range(40, 40 + 4 * BLOCK + 3))


def ask(name: str = "r", prompt: tuple[int, ...] = PROMPT, max_tokens: int = 12) -> Request:
    return make_request(name, prompt=prompt, max_tokens=max_tokens)


def tokens_of(events: list) -> list[int]:  # type: ignore[type-arg]
    return [event.token_id for event in events]


@pytest.mark.parametrize("path", ["prefill", "decode", "split"])
async def test_two_turns_by_each_path(path: str) -> None:
    async with pair(replace(FAST, path_policy=path)) as it:
        first = await it.run(ask("one"))
        assert tokens_of(first) == answer_to(PROMPT, 12)
        assert first[-1].finish_reason is FinishReason.LENGTH
        turn = (*PROMPT, *tokens_of(first), 7, 8)
        num_stored = (len(PROMPT) + 11) // BLOCK  # the last token's KV is never computed
        assert it.index.match(keys_of(turn)) == num_stored, "known to the index before the last token was ours"
        assert it.record(ask("one")).num_retries == 0
        second = await it.run(ask("two", turn))
        assert tokens_of(second) == answer_to(turn, 12)
        record = it.record(ask("two"))
        assert record.num_hit_tokens == num_stored * BLOCK
        read = {side for side, num_bytes in record.storage_read_bytes.items() if num_bytes}
        assert read == ({"prefill", "decode"} if path == "split" else {path})
        await it.quiet()


async def test_one_token_ends_with_prefill() -> None:
    async with pair() as it:
        events = await it.run(ask(max_tokens=1))
        assert tokens_of(events) == answer_to(PROMPT, 1)
        await it.quiet()
        assert it.storage.blocks == set(keys_of(PROMPT))
        assert not it.decode_server.asked


async def test_log_probabilities_are_those_of_both_servers() -> None:
    async with pair() as it:
        request = ask()
        events = await it.run(replace(request, sampling=replace(request.sampling, num_logprobs=1)))
        assert [event.logprob for event in events[1:]] == [-1.5] * 11
        assert events[-1].top_logprobs == {1: -0.5}, "the most likely, not the sampled one"


@pytest.mark.parametrize("side", ["prefill", "decode"])
async def test_a_server_that_breaks_off_is_tried_again(side: str) -> None:
    async with pair() as it:
        server = it.prefill_server if side == "prefill" else it.decode_server
        server.breaks = [0, 0] if side == "prefill" else [3, 0]
        events = await it.run(ask())
        assert tokens_of(events) == answer_to(PROMPT, 12)
        assert it.record(ask()).num_retries == 2
        await it.quiet()


async def test_a_server_without_its_engine_is_lost_until_it_is_well() -> None:
    async with pair() as it:
        it.decode_server.is_well = False
        await until(lambda: not it.service.ready())
        waiting = asyncio.create_task(it.run(ask()))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        it.decode_server.is_well = True
        assert tokens_of(await waiting) == answer_to(PROMPT, 12)


@pytest.mark.parametrize("side", [0, 1], ids=["prefill", "decode"])
@pytest.mark.parametrize("is_other_model", [True, False], ids=["model", "engine"])
async def test_a_server_that_comes_back_as_another_is_not_used(is_other_model: bool, side: int) -> None:
    """Its KV would be taken for the former one's, by the other side and by storage."""
    async with pair() as it:
        assert tokens_of(await it.run(ask("one"))) == answer_to(PROMPT, 12)
        info = (it.prefill, it.decode)[side].info
        other = replace(NAMESPACE, model_fingerprint="0" * 32) if is_other_model else NAMESPACE
        it.lines[side].come_back(namespace=other, engines=(info if is_other_model else replace(info, engine_id="x0"),))
        await until(lambda: not it.service.ready())
        await asyncio.sleep(0.1)  # it is asked ten times
        assert not it.service.ready()
        it.lines[side].come_back(namespace=NAMESPACE, engines=(info,))
        await until(it.service.ready)
        assert tokens_of(await it.run(ask("two"))) == answer_to(PROMPT, 12)


@pytest.mark.parametrize("reason", ["abort", "error", "repetition"])
async def test_an_answer_that_vllm_gives_up_is_resumed(reason: str) -> None:
    """All but its last token had come; that one prefill makes."""
    async with pair() as it:
        it.decode_server.ended_by = reason
        assert tokens_of(await it.run(ask())) == answer_to(PROMPT, 12)
        assert it.record(ask()).num_retries == 1
        await it.quiet()


async def test_a_prefill_server_that_gives_up_is_given_up() -> None:
    async with pair(replace(FAST, max_retries=1)) as it:
        it.prefill_server.ended_by = "error"
        with pytest.raises(EngineLostError, match="error"):
            await it.run(ask())
        await it.quiet()


@pytest.mark.parametrize("is_answered", [False, True])
async def test_lost_pushes_end_the_attempt_whether_vllm_has_answered_or_not(is_answered: bool) -> None:
    """The decode server would go on from KV that never came."""
    async with pair() as it:
        it.prefill.faults["prefill"].append(PathBrokenError("cut"))
        if is_answered:
            it.prefill.delay_s["prefill"] = 0.1  # on the way: vLLM has its token long before
        else:
            it.prefill_server.pause.clear()
        running = asyncio.create_task(it.run(ask()))
        await until(lambda: len(it.prefill_server.asked) == 2)
        assert not it.decode_server.asked, "nothing went on from the first attempt"
        it.prefill_server.pause.set()
        assert tokens_of(await running) == answer_to(PROMPT, 12)
        assert it.record(ask()).num_retries == 1
        assert len(it.decode_server.asked) == 1


@pytest.mark.parametrize("num_read", [0, 1, 5])
async def test_who_goes_away_leaves_nothing_behind(num_read: int) -> None:
    async with pair() as it:
        if num_read == 0:
            it.prefill_server.pause.clear()
        stream = it.service.generate(ask(max_tokens=300))
        waiting = asyncio.ensure_future(anext(stream))
        for _ in range(num_read):
            await waiting
            waiting = asyncio.ensure_future(anext(stream))
        if num_read == 0:
            await until(lambda: bool(it.prefill_server.asked))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await stream.aclose()
        it.prefill_server.pause.set()
        await it.quiet()
        await until(lambda: it.prefill.holds_nothing and it.decode.holds_nothing)


@pytest.mark.parametrize("status", [400, 404])
async def test_what_vllm_refuses_is_the_clients_fault(status: int) -> None:
    async with pair() as it:
        error = {"error": {"message": "too much", "type": "BadRequestError", "code": status}}
        it.prefill_server.fail_with["/inference/v1/generate"] = status, error
        with pytest.raises(InvalidRequestError, match="too much"):
            await it.run(ask())
        assert it.record(ask()).num_retries == 0


async def test_what_looks_at_prompt_and_answer_alike_is_split_over_both_servers() -> None:
    async with pair() as it:
        request = ask()
        more = {"min_tokens": 5, "logit_bias": ((3, 1.5),), "allowed_token_ids": (1, 2), "repetition_penalty": 1.2}
        await it.run(replace(request, sampling=replace(request.sampling, **more)))  # type: ignore[arg-type]
        sent = [server.asked[-1][1]["sampling_params"] for server in (it.prefill_server, it.decode_server)]
        assert [body["min_tokens"] for body in sent] == [1, 4]
        assert [body["max_tokens"] for body in sent] == [1, 11]
        for body in sent:
            assert body["logit_bias"] == {"3": 1.5}
            assert body["allowed_token_ids"] == [1, 2]
            assert body["repetition_penalty"] == 1.2


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty"])
async def test_what_looks_at_the_answer_alone_is_refused(name: str) -> None:
    async with pair() as it:
        request = ask()
        with pytest.raises(InvalidRequestError, match=f"{name} is not supported in token mode"):
            await it.run(replace(request, sampling=replace(request.sampling, **{name: 0.5})))  # type: ignore[arg-type]

"""Clients' own bodies through the gateway to the decode server: unmodified clients, hits, counts, failures, aborts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from anthropic import AsyncAnthropic
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError
from tests.scheduler.fixtures import BLOCK
from tests.vllm.fake_server import answer_to, ids_of, serving_app, text_of
from tests.vllm.pair import Pair, pair, until

from dualpath.core.exchange import Exchange, Heard
from dualpath.gateway.app import create_app
from dualpath.gateway.openai.shapes import Usage
from dualpath.gateway.passthrough.answer import PassthroughJob
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.models.init import init_model
from dualpath.vllm.upstream import VllmUpstream

SAID = "the quick brown fox jumps over the lazy dog. "
FULL = len(SAID) // BLOCK * BLOCK


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(init_model("qwen3", tmp_path_factory.mktemp("vllm") / "model"))


@dataclass
class Front:
    """A pair behind a gateway, and clients before it."""

    it: Pair
    url: str
    http: httpx.AsyncClient
    openai: AsyncOpenAI

    @property
    def sent(self) -> tuple[str, dict[str, Any], dict[str, str]]:
        """What the decode server was asked last."""
        return self.it.decode_server.asked[-1]

    async def records(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.http.get("/v1/dualpath/requests")).json()["data"]
        return found


@asynccontextmanager
async def front(tokenizer: Tokenizer, settings: GatewaySettings | None = None) -> AsyncIterator[Front]:
    async with pair() as it:
        app = create_app(it.service, tokenizer, settings, upstream=VllmUpstream(it.servers, it.exchanges))
        key = settings.api_keys[0] if settings and settings.api_keys else "-"
        async with serving_app(app) as url, httpx.AsyncClient(base_url=url, timeout=20, verify=False) as http:
            openai = AsyncOpenAI(api_key=key, base_url=f"{url}/v1", http_client=http, max_retries=0)
            yield Front(it, url, http, openai)
            await it.quiet()


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


async def test_an_openai_client_chats_and_its_next_turn_hits(tokenizer: Tokenizer) -> None:
    async with front(tokenizer) as it:
        one = await it.openai.chat.completions.create(model="m", messages=user(SAID), max_tokens=12)
        said = one.choices[0].message.content
        assert said == text_of(answer_to(ids_of(SAID), 12))
        assert one.usage is not None
        assert one.usage.prompt_tokens_details is not None
        assert one.usage.prompt_tokens_details.cached_tokens == 0
        turn = [*user(SAID), {"role": "assistant", "content": said}, {"role": "user", "content": "yes"}]
        two = await it.openai.chat.completions.create(model="m", messages=turn, max_tokens=5)
        assert two.usage is not None
        assert two.usage.prompt_tokens_details is not None
        num_stored = (len(SAID) + 11) // BLOCK * BLOCK
        assert two.usage.prompt_tokens_details.cached_tokens == num_stored, "the answer's blocks were stored, too"
        assert two.choices[0].message.content == text_of(answer_to(ids_of(f"{SAID}{said}yes"), 5))
        path, body, headers = it.sent
        assert path == "/v1/chat/completions"
        assert body["kv_transfer_params"]["prompt_token_ids"] == ids_of(f"{SAID}{said}yes")
        newest, oldest = await it.records()
        assert (oldest["num_generated_tokens"], newest["num_generated_tokens"]) == (12, 5)
        assert newest["num_hit_tokens"] == num_stored
        assert newest["path"] == "split"
        assert newest["request_id"] == f"chatcmpl-{headers['x-request-id']}"


@pytest.mark.parametrize("asks_for_usage", [False, True])
async def test_a_stream_passes_as_it_is_but_for_the_count(asks_for_usage: bool, tokenizer: Tokenizer) -> None:
    async with front(tokenizer) as it:
        await it.openai.chat.completions.create(model="m", messages=user(SAID), max_tokens=1)
        more: dict[str, Any] = {"stream_options": {"include_usage": True}} if asks_for_usage else {}
        stream = await it.openai.chat.completions.create(
            model="m", messages=user(SAID), max_tokens=9, stream=True, **more
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == text_of(answer_to(ids_of(SAID), 9))
        counts = [chunk.usage for chunk in chunks if chunk.usage is not None]
        assert len(counts) == asks_for_usage
        for count in counts:
            assert count.prompt_tokens_details is not None
            assert count.prompt_tokens_details.cached_tokens == FULL
        record = (await it.records())[0]
        assert record["num_generated_tokens"] == 9
        assert record["tpot_s"] is not None


async def test_completions_send_tokens_in_place_of_text(tokenizer: Tokenizer) -> None:
    async with front(tokenizer) as it:
        answer = await it.openai.completions.create(model="m", prompt=SAID, max_tokens=4)
        assert answer.choices[0].text == text_of(answer_to(ids_of(SAID), 4))
        assert it.sent[1]["prompt"] == ids_of(SAID)


@pytest.mark.parametrize(("is_stream", "seed"), [(False, 7), (True, 7.0)])
async def test_several_choices_and_prompts_are_one_answer(is_stream: bool, seed: float, tokenizer: Tokenizer) -> None:
    async with front(tokenizer) as it:
        other = SAID.replace("quick", "slow")
        await it.openai.completions.create(model="m", prompt=SAID, max_tokens=1)
        asked: dict[str, Any] = {"model": "m", "max_tokens": 5, "n": 2, "seed": seed}
        texts, usage, ids = [""] * 4, None, set()
        if is_stream:
            stream = await it.openai.chat.completions.create(
                messages=user(SAID), stream=True, stream_options={"include_usage": True}, **asked
            )
            async for chunk in stream:
                ids.add(chunk.id)
                usage = chunk.usage or usage
                for said in chunk.choices:
                    texts[said.index] += said.delta.content or ""
            expected = [text_of(answer_to(ids_of(SAID), 5))] * 2 + ["", ""]
        else:
            answer = await it.openai.completions.create(prompt=[SAID, other], **asked)
            ids, usage = {answer.id}, answer.usage
            for choice in answer.choices:
                texts[choice.index] = choice.text
            expected = [text_of(answer_to(ids_of(text), 5)) for text in (SAID, SAID, other, other)]
        assert texts == expected
        num_prompts = 1 if is_stream else 2
        assert usage is not None
        assert usage.prompt_tokens == len(SAID) + (num_prompts - 1) * len(other)
        assert usage.completion_tokens == 5 * 2 * num_prompts
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens >= FULL
        assert len(ids) == 1
        bodies = [body for path, body, _ in it.it.decode_server.asked[1:] if "render" not in path]
        assert sorted(body["seed"] for body in bodies) == sorted([7, 8] * num_prompts)
        assert {body["n"] for body in bodies} == {1}
        assert {record["request_id"].rpartition("-")[0] for record in (await it.records())[:-1]} == ids


async def test_choices_are_bounded(tokenizer: Tokenizer) -> None:
    async with front(tokenizer, GatewaySettings(max_choices=3)) as it:
        with pytest.raises(BadRequestError, match="at most 3 choices"):
            await it.openai.chat.completions.create(model="m", messages=user(SAID), n=4)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_responses(is_stream: bool, tokenizer: Tokenizer) -> None:
    async with front(tokenizer) as it:
        await it.openai.completions.create(model="m", prompt=SAID, max_tokens=1)
        body: dict[str, Any] = {"model": "m", "input": SAID, "max_output_tokens": 6}
        if is_stream:
            events = [event async for event in await it.openai.responses.create(**body, stream=True)]
            text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
            usage: Any = events[-1].response.usage
            assert text == text_of(answer_to(ids_of(SAID), 6))
        else:
            usage = (await it.openai.responses.create(**body)).usage
        assert usage.input_tokens_details.cached_tokens == FULL
        assert it.sent[1]["request_id"] == f"resp_{it.sent[2]['x-request-id']}"
        assert (await it.records())[0]["num_generated_tokens"] == 6
        with pytest.raises(BadRequestError, match="previous_response_id is not supported"):
            await it.openai.responses.create(model="m", input="x", previous_response_id="resp_1")


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_anthropic_clients_messages(is_stream: bool, tokenizer: Tokenizer) -> None:
    async with front(tokenizer) as it:
        await it.openai.completions.create(model="m", prompt=SAID, max_tokens=1)
        body: dict[str, Any] = {"model": "m", "messages": user(SAID), "max_tokens": 6}
        anthropic = AsyncAnthropic(api_key="-", base_url=it.url, max_retries=0)
        if is_stream:
            async with anthropic.messages.stream(**body) as stream:
                text = "".join([piece async for piece in stream.text_stream])
                usage: Any = (await stream.get_final_message()).usage
            assert text == text_of(answer_to(ids_of(SAID), 6))
        else:
            usage = (await anthropic.messages.create(**body)).usage
        assert (usage.input_tokens, usage.cache_read_input_tokens) == (len(SAID) - FULL, FULL)
        count = await anthropic.messages.count_tokens(model="m", messages=user(SAID))
        assert count.input_tokens == len(SAID)
        await anthropic.close()


@pytest.mark.parametrize(
    ("more", "field"),
    [({"extra_body": {"best_of": 2}}, "best_of"), ({"extra_body": {"prompt_logprobs": 1}}, "prompt_logprobs")],
    ids=["best_of", "prompt_logprobs"],
)
async def test_what_cannot_be_answered_from_kv_of_elsewhere(
    more: dict[str, Any], field: str, tokenizer: Tokenizer
) -> None:
    async with front(tokenizer) as it:
        with pytest.raises(BadRequestError, match=f"{field} is not supported"):
            await it.openai.chat.completions.create(model="m", messages=user(SAID), **more)
        assert [path for path, *_ in it.it.decode_server.asked + it.it.prefill_server.asked] == []


async def test_what_vllm_refuses_keeps_its_status_and_its_words(tokenizer: Tokenizer) -> None:
    async with front(tokenizer) as it:
        with pytest.raises(NotFoundError, match="does not exist"):
            await it.openai.chat.completions.create(model="other", messages=user(SAID))
        error = {"error": {"message": "no such tool", "type": "BadRequestError", "param": "tools", "code": 400}}
        it.it.decode_server.fail_with["/v1/chat/completions"] = 400, error
        it.it.decode_server.fail_with["/v1/messages"] = 400, {"type": "error", "error": error["error"]}
        for is_stream in (False, True):
            with pytest.raises(BadRequestError, match="no such tool") as raised:
                await it.openai.chat.completions.create(model="m", messages=user(SAID), stream=is_stream)
            assert raised.value.param == "tools"
        answer = await it.http.post("/v1/messages", json={"model": "m", "messages": user(SAID), "max_tokens": 2})
        assert answer.json() == {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "no such tool"},
        }
        outcomes = {record["outcome"] for record in await it.records()}
        assert outcomes == {"failed"}


@pytest.mark.parametrize("raw", [b"[]", b"{", b"1", b'{"a":' * 5000], ids=["array", "open", "number", "deep"])
async def test_bodies_that_are_none(raw: bytes, tokenizer: Tokenizer) -> None:
    async with front(tokenizer) as it:
        answer = await it.http.post("/v1/chat/completions", content=raw)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"


WRONG_TYPES: list[tuple[str, Any]] = [
    *(("stream", value) for value in (1, 0, "true", "false", [], {})),
    *(("n", value) for value in ("2", True, 1.5)),
    *(("max_tokens", value) for value in ("5", True, [5])),
    *(("max_completion_tokens", "5"), ("max_output_tokens", "5"), ("seed", "7"), ("echo", "false")),
    *(("stream_options", True), ("stream_options.include_usage", "false"), ("cache_salt", 7)),
]


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "messages"])
async def test_fields_that_vllm_would_read_otherwise(path: str, tokenizer: Tokenizer) -> None:
    body = {"model": "m", "messages": user(SAID), "prompt": SAID, "input": SAID, "max_tokens": 5}
    async with front(tokenizer) as it:
        for name, value in WRONG_TYPES:
            field, _, inner = name.partition(".")
            answer = await it.http.post(f"/v1/{path}", json=body | {field: {inner: value} if inner else value})
            assert answer.status_code == 400, (name, value, answer.text)
            assert name in answer.json()["error"]["message"]
        asked = [*it.it.decode_server.asked, *it.it.prefill_server.asked]
        assert not asked
        answer = await it.http.post(f"/v1/{path}", json=body | {"max_tokens": 5.0, "stream": None})
        assert answer.status_code == 200


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "messages"])
async def test_what_is_ours_to_say_is_not_the_clients(path: str, tokenizer: Tokenizer) -> None:
    """Not to the server that renders either."""
    body = {"model": "m", "messages": user(SAID), "prompt": SAID, "input": SAID, "max_tokens": 5, "echo": True}
    body |= {"request_id": "a stranger's", "kv_transfer_params": {"remote_host": "a stranger's"}}
    async with front(tokenizer) as it:
        assert (await it.http.post(f"/v1/{path}", json=body)).status_code == 200
        asked = [*it.it.decode_server.asked, *it.it.prefill_server.asked]
        assert len(asked) >= 2
        assert [sent for sent in asked if "a stranger's" in json.dumps(sent[1])] == []


async def test_an_answer_that_breaks_before_it_was_heard_is_begun_anew(tokenizer: Tokenizer) -> None:
    async with front(tokenizer) as it:
        it.it.decode_server.breaks = [0, 0]
        stream = await it.openai.chat.completions.create(model="m", messages=user(SAID), max_tokens=7, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == text_of(answer_to(ids_of(SAID), 7)), "no piece of the first attempt's"


async def test_one_that_breaks_later_ends_with_an_error(tokenizer: Tokenizer) -> None:
    async with front(tokenizer) as it:
        it.it.decode_server.breaks = [4]
        body = {"model": "m", "messages": user(SAID), "max_tokens": 7, "stream": True}
        lines = (await it.http.post("/v1/chat/completions", json=body)).text.split("\n\n")
        assert lines[-2] == "data: [DONE]"
        assert json.loads(lines[-3][6:])["error"]["type"] == "server_error"
        assert (await it.records())[0]["outcome"] == "failed"


async def test_a_client_that_goes_away_ends_its_request_at_the_server(tokenizer: Tokenizer) -> None:
    async with front(tokenizer) as it:
        body = {"model": "m", "messages": user(SAID), "max_tokens": 300, "stream": True}
        async with it.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for _ in answer.aiter_bytes():
                break
        await until(lambda: it.it.decode_server.num_cancelled == 1)
        await until(lambda: it.it.decode.holds_nothing and it.it.prefill.holds_nothing)
        assert (await it.records())[0]["outcome"] == "cancelled"


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_a_request_that_an_admin_ends_is_no_fault_of_the_servers(
    path: str, is_stream: bool, tokenizer: Tokenizer
) -> None:
    body = {"model": "m", "messages": user(SAID), "input": SAID, "max_tokens": 300, "stream": is_stream}
    async with front(tokenizer) as it:
        if not is_stream:
            it.it.decode_server.pause.clear()
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(it.http.post(path, json=body))
            await until(lambda: path in [asked[0] for asked in it.it.decode_server.asked])
            await it.http.post("/abort_requests")
            it.it.decode_server.pause.set()
            answer = await asking
        assert "the request was aborted" in answer.text
        assert answer.status_code == 409 or (is_stream and answer.status_code == 200)
        assert ("invalid_request_error" if path == "/v1/messages" else "request_aborted") in answer.text
        assert (await it.records())[0]["outcome"] == "cancelled"


async def test_no_server_no_answer(tokenizer: Tokenizer) -> None:
    async with front(tokenizer) as it:
        for server in (it.it.prefill_server, it.it.decode_server):
            server.fail_with["/v1/chat/completions/render"] = 500, {}
        with pytest.raises(APIStatusError) as raised:
            await it.openai.chat.completions.create(model="m", messages=user(SAID))
        assert raised.value.status_code == 503


async def test_tenants_share_no_kv_anywhere(tokenizer: Tokenizer) -> None:
    async with front(tokenizer, GatewaySettings(api_keys=("one", "two"))) as it:
        hits, salts = [], []
        for key in ("one", "one", "two"):
            client = it.openai.with_options(api_key=key)
            answer = await client.chat.completions.create(
                model="m", messages=user(SAID), max_tokens=2, extra_body={"kv_transfer_params": {"dualpath": "mine"}}
            )
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            hits.append(answer.usage.prompt_tokens_details.cached_tokens)
            salts.append(it.sent[1]["cache_salt"])
        assert hits == [0, FULL, 0]
        assert salts[0] == salts[1] != salts[2]
        served = [body for path, body, _ in it.it.prefill_server.asked if path.startswith("/inference")]
        assert [body["cache_salt"] for body in served] == salts


async def test_who_has_read_the_end_of_an_answer_finds_its_blocks(tokenizer: Tokenizer) -> None:
    """Also one that reads late, when all pieces have come and the node is still to be asked."""
    async with front(tokenizer) as it:
        stopping, go_on = asyncio.Event(), asyncio.Event()
        stop = it.it.decode.stop

        async def slowly(request_id: Any) -> None:
            stopping.set()
            await go_on.wait()
            await stop(request_id)

        it.it.decode.stop = slowly  # type: ignore[method-assign]
        body = {"model": "m", "messages": user(SAID), "max_tokens": 9, "stream": True}
        read = b""
        async with it.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            pieces = answer.aiter_bytes()
            await stopping.wait()
            while read.count(b"data: ") < 9:  # the role and eight tokens
                read += await anext(pieces)
            assert b'finish_reason":"length' not in read.replace(b": ", b":")
            go_on.set()
            async for piece in pieces:
                read += piece
        assert read.endswith(b"data: [DONE]\n\n")
        assert (await it.records())[0]["outcome"] == "finished"


async def test_pieces_without_counts_cost_no_look_at_the_records(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, usage = [0], PassthroughJob.usage

    def counted(job: PassthroughJob, backend: Any) -> Usage:
        looks[0] += 1
        return usage(job, backend)

    monkeypatch.setattr(PassthroughJob, "usage", counted)
    async with front(tokenizer) as it:
        stream = await it.openai.chat.completions.create(
            model="m", messages=user(SAID), max_tokens=9, stream=True, stream_options={"include_usage": True}
        )
        assert len([chunk async for chunk in stream]) > 9
    assert looks[0] <= 3  # at the beginning, for the counts, at the end


def test_what_closes_an_answer_is_not_there_before_its_last_event() -> None:
    exchange = Exchange("/x", {}, {}, True, lambda _: Heard())
    exchange.put(b"of an attempt that failed", closes=True)
    exchange.begin()
    exchange.put(b"a")
    exchange.put(b"end", closes=True)
    assert exchange.take(is_last=False) == [b"a"]
    exchange.put(b"b")
    assert exchange.take(is_last=True) == [b"b", b"end"]

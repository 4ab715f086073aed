"""/v1/chat/completions through the official client: messages, tools, log probabilities, streams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from tests.gateway.fakes import EOS_ID, FakeBackend, says

from dualpath.gateway.app import create_app
from dualpath.gateway.json_size import ContainerLimit
from dualpath.gateway.openai.messages import _message
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.text.tokenizer import Tokenizer

USER: list[Any] = [{"role": "user", "content": "hi"}]
PROMPT = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALLING = 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city":"Paris"}}\n</tool_call>'


def prompt_of(backend: FakeBackend) -> str:
    """The last request's prompt, its special tokens spelled out."""
    names = {256: b"<|im_start|>", 257: b"<|im_end|>"}
    return b"".join(names.get(i, bytes([i % 256])) for i in backend.requests[-1].prompt_token_ids).decode()


async def test_one_answer(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    answer = await openai.chat.completions.create(model="fake", messages=USER)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.message.tool_calls) == ("assistant", "Hello", None)
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    num_prompt = answer.usage.prompt_tokens
    assert backend.requests[0].sampling.max_tokens == backend.max_context_tokens - num_prompt
    assert prompt_of(backend) == PROMPT


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_more_tokens_than_there_is_room_for_are_as_many_as_there_is(
    openai: AsyncOpenAI, backend: FakeBackend, name: str
) -> None:
    """Agents always ask for the same large number."""
    answer = await openai.chat.completions.create(model="fake", messages=USER, extra_body={name: 8192, "min_p": 0.1})
    assert answer.usage is not None
    sampling = backend.requests[0].sampling
    assert sampling.max_tokens == backend.max_context_tokens - answer.usage.prompt_tokens
    assert sampling.min_p == 0.1


async def test_stream(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = says("hé😀")
    stream = await openai.chat.completions.create(
        model="fake", messages=USER, stream=True, stream_options={"include_usage": True}, max_completion_tokens=7
    )
    chunks = [chunk async for chunk in stream]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in chunks[:-1]] == ["", "h", "é", "😀"]
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 7


async def test_content_parts_and_history(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call], "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    await openai.chat.completions.create(model="fake", messages=messages, tools=TOOLS)
    prompt = prompt_of(backend)
    assert "<|im_start|>user\none\ntwo<|im_end|>\n" in prompt
    assert '"name": "weather", "parameters": {"type": "object"}' in prompt
    assert prompt.endswith(
        f"{CALLING}<|im_end|>\n<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


async def test_parts_by_all_their_names(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    """A tool's picture becomes a line, as the conversation has to go on; a user's is refused (test_errors)."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}}
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}, {"type": "output_text", "text": "or"}]},
        {"role": "user", "content": "do"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "see"}, picture]},
    ]
    await openai.chat.completions.create(model="fake", messages=messages)
    prompt = prompt_of(backend)
    for said in ("user\none<", "assistant\nno\nor<", "see\n[image_url: not shown, this model takes text only]\n"):
        assert said in prompt


@pytest.mark.parametrize("thinking", ["hm", [{"type": "text", "text": "h"}, {"type": "text", "text": "m"}]])
def test_reasoning_among_the_parts_is_reasoning(tokenizer: Tokenizer, thinking: Any) -> None:
    parts = [{"type": "thinking", "thinking": thinking}, {"type": "text", "text": "Yes"}]
    said = _message(tokenizer.template_needs, {"role": "assistant", "content": parts}, ContainerLimit(9), "m")
    assert said == {"role": "assistant", "content": "Yes", "reasoning_content": "hm", "reasoning": "hm"}
    twice = {"role": "assistant", "content": parts, "reasoning_content": "ha"}
    assert _message(tokenizer.template_needs, twice, ContainerLimit(9), "m")["reasoning"] == "ha"


async def test_no_tools_may_be_chosen_from(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    """As with vLLM; without the field it is refused (test_errors)."""
    answer = await openai.chat.completions.create(model="fake", messages=USER, tools=[], tool_choice="auto")
    assert answer.choices[0].message.content == "Hello"


async def test_a_history_with_calls_repeats_the_tokens_that_made_it(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = says(CALLING)
    messages = list(USER)
    answer = await openai.chat.completions.create(model="fake", messages=messages, tools=TOOLS)
    first = [*backend.requests[0].prompt_token_ids, *backend.script(backend.requests[0])]
    messages.append(answer.choices[0].message.model_dump(exclude_none=True))
    messages.append({"role": "user", "content": "go on"})
    await openai.chat.completions.create(model="fake", messages=messages, tools=TOOLS)
    assert list(backend.requests[1].prompt_token_ids[: len(first)]) == first


async def test_tool_calls(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = says(CALLING)
    answer = await openai.chat.completions.create(model="fake", messages=USER, tools=TOOLS, tool_choice="auto")
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("Let me see.", "tool_calls")
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("weather", '{"city":"Paris"}')


async def test_calls_alone_come_without_content_and_an_empty_answer_with_an_empty_one(
    openai: AsyncOpenAI, backend: FakeBackend
) -> None:
    for script, content, num_calls in ((CALLING[CALLING.index("<") :], None, 1), ("", "", 0)):
        backend.script = says(script)
        answer = await openai.chat.completions.create(model="fake", messages=USER, tools=TOOLS)
        message = answer.choices[0].message
        assert (message.content, len(message.tool_calls or [])) == (content, num_calls)


async def test_tool_calls_streamed(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = says(CALLING + "\n" + CALLING[12:])
    stream = await openai.chat.completions.create(model="fake", messages=USER, tools=TOOLS, stream=True)
    content, reasons = "", []
    calls: dict[int, tuple[str | None, str]] = {}
    async for chunk in stream:
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        reasons.append(choice.finish_reason)
        for call in choice.delta.tool_calls or []:
            assert call.function is not None
            name, arguments = calls.get(call.index, (call.function.name, ""))
            assert (call.id is not None) == (call.index not in calls)
            calls[call.index] = (name, arguments + (call.function.arguments or ""))
    assert content == "Let me see."
    assert calls == {0: ("weather", '{"city":"Paris"}'), 1: ("weather", '{"city":"Paris"}')}
    assert reasons[-1] == "tool_calls"


async def test_without_tools_or_with_none_markup_is_text(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = says(CALLING)
    answer = await openai.chat.completions.create(model="fake", messages=USER)
    assert answer.choices[0].message.content == CALLING
    answer = await openai.chat.completions.create(model="fake", messages=USER, tools=TOOLS, tool_choice="none")
    assert answer.choices[0].message.content == CALLING
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(("parser", "num_calls"), [("auto", 1), ("hermes", 1), ("mistral", 0), ("none", 0)])
async def test_the_form_of_calls_can_be_set(
    backend: FakeBackend, tokenizer: Tokenizer, parser: str, num_calls: int
) -> None:
    backend.script = says(CALLING)
    app = create_app(backend, tokenizer, GatewaySettings(tool_call_parser=parser))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway/v1") as http:
        answer = await http.post("/chat/completions", json={"messages": USER, "tools": TOOLS})
    assert len(answer.json()["choices"][0]["message"].get("tool_calls") or []) == num_calls


async def test_one_call_at_a_time(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = says(CALLING + CALLING)
    answer = await openai.chat.completions.create(model="fake", messages=USER, tools=TOOLS, parallel_tool_calls=False)
    assert len(answer.choices[0].message.tool_calls or []) == 1


async def test_continued_messages(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    messages = [*USER, {"role": "assistant", "content": "I think"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    await openai.chat.completions.create(model="fake", messages=messages, extra_body=extra)
    assert prompt_of(backend) == PROMPT + "I think"
    await openai.chat.completions.create(model="fake", messages=USER, extra_body={"add_generation_prompt": False})
    assert prompt_of(backend) == "<|im_start|>user\nhi<|im_end|>\n"


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs(http: httpx.AsyncClient, openai: AsyncOpenAI, backend: FakeBackend, stream: bool) -> None:
    backend.script = says("aé", ends=False)
    arguments: dict[str, Any] = {"model": "fake", "messages": USER, "logprobs": True, "top_logprobs": 1}
    if stream:
        chunks = [c async for c in await openai.chat.completions.create(**arguments, stream=True)]
        parts = [chunk.choices[0].logprobs for chunk in chunks]
        tokens = [token for part in parts if part for token in part.content or []]
    else:
        whole = (await openai.chat.completions.create(**arguments)).choices[0].logprobs
        assert whole is not None
        tokens = whole.content or []
    assert [(token.bytes, token.logprob) for token in tokens] == [([97], -0.5), ([0xC3], -0.5), ([0xA9], -0.5)]
    assert tokens[0].token == "a"
    assert [(top.token, top.bytes) for top in tokens[0].top_logprobs] == [("a", [97])]


async def test_token_ids(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = says("ab")
    extra = {"return_token_ids": True}
    answer = await openai.chat.completions.create(model="fake", messages=USER, extra_body=extra)
    assert tuple(answer.prompt_token_ids) == backend.requests[0].prompt_token_ids  # type: ignore[attr-defined]
    assert answer.choices[0].token_ids == [97, 98, EOS_ID]  # type: ignore[attr-defined]
    stream = await openai.chat.completions.create(model="fake", messages=USER, stream=True, extra_body=extra)
    chunks = [chunk.model_dump() async for chunk in stream]
    assert tuple(chunks[0]["prompt_token_ids"]) == backend.requests[0].prompt_token_ids
    ids = [token_id for chunk in chunks for token_id in chunk["choices"][0].get("token_ids") or []]
    assert ids == [97, 98, EOS_ID]


async def test_a_token_without_text_is_streamed_where_ids_are_asked_for(
    http: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = lambda _: [97, 256, 98, EOS_ID]
    body = {"model": "fake", "messages": USER, "stream": True, "return_token_ids": True}
    lines = (await http.post("/v1/chat/completions", json=body)).text.split()
    chunks = [json.loads(line) for line in lines if line.startswith("{")]
    ids = [chunk["choices"][0].get("token_ids") for chunk in chunks]
    assert [some for some in ids if some] == [[97], [256], [98], [EOS_ID]]


async def test_several_choices(openai: AsyncOpenAI) -> None:
    answer = await openai.chat.completions.create(model="fake", messages=USER, n=2)
    assert [choice.message.content for choice in answer.choices] == ["Hello", "Hello"]


async def test_special_tokens_can_be_shown(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = lambda _: [97, 256, 98]
    extra = {"skip_special_tokens": False}
    answer = await openai.chat.completions.create(model="fake", messages=USER, extra_body=extra)
    assert answer.choices[0].message.content == "a<|im_start|>b"


async def test_reasoning_is_apart_and_no_call_comes_out_of_it(model_dir: Path, backend: FakeBackend) -> None:
    tokenizer = Tokenizer.load(model_dir)
    tokenizer.chat_template += "{# <think> #}"
    backend.script = says(f"<think>\n{CALLING}\n</think>\n\nNo.")
    transport = httpx.ASGITransport(create_app(backend, tokenizer))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway/v1") as http:
        client = AsyncOpenAI(api_key="-", base_url="http://gateway/v1", http_client=http)
        whole = await client.chat.completions.create(model="fake", messages=USER, tools=TOOLS)
        stream = await client.chat.completions.create(model="fake", messages=USER, tools=TOOLS, stream=True)
        deltas = [chunk.choices[0].delta.model_dump() async for chunk in stream]
    message = whole.choices[0].message.model_dump()
    assert message["tool_calls"] is None
    assert whole.choices[0].finish_reason == "stop"
    for name in ("reasoning", "reasoning_content"):
        assert message[name].strip() == CALLING
        assert "".join(delta.get(name) or "" for delta in deltas) == message[name]
    assert message["content"].strip() == "No."
    assert "".join(delta["content"] or "" for delta in deltas) == message["content"]


async def test_log_probabilities_of_a_conversation_are_the_answers_not_a_choices(
    http: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = {"messages": USER, "max_tokens": 1, "n": 2, "prompt_logprobs": 1}
    answer = (await http.post("/v1/chat/completions", json=body)).json()
    assert len(answer["choices"]) == 2
    assert all("prompt_logprobs" not in choice for choice in answer["choices"])
    first, second, *others = answer["prompt_logprobs"]
    assert first is None
    assert second == {
        "117": {"logprob": -1.0, "rank": 40, "decoded_token": "u"},
        "0": {"logprob": -0.5, "rank": 1, "decoded_token": "\0"},
    }
    assert len(others) == len(backend.requests[0].prompt_token_ids) - 2
    told = (await http.post("/v1/chat/completions", json=body | {"prompt_logprobs": None})).json()
    assert "prompt_logprobs" not in told

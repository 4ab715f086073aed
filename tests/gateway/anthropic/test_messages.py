"""/v1/messages through Anthropic's own client: blocks, tools, reasoning, streams, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic as sdk
import httpx
import httpx2
import pytest
from anthropic import AsyncAnthropic
from tests.gateway.conftest import Serving
from tests.gateway.fakes import FakeBackend, says
from tests.gateway.sse import events_of
from tests.gateway.test_chat import CALLING, prompt_of

from dualpath.core.errors import DualPathError, OverloadedError
from dualpath.gateway.app import create_app
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.text.tokenizer import Tokenizer

ASK: dict[str, Any] = {"model": "fake", "max_tokens": 300, "messages": [{"role": "user", "content": "hi"}]}
TOOLS: list[Any] = [{"name": "weather", "description": "Tells it", "input_schema": {"type": "object"}}]
TOOL_USE = {"type": "tool_use", "name": "weather", "input": {"city": "Paris"}}


def plain(message: Any) -> dict[str, Any]:
    """Without what is made anew for each answer."""
    fields: dict[str, Any] = message.model_dump(exclude_none=True, exclude={"id"})
    for block in fields["content"]:
        block.pop("id", None)
    return fields


async def streamed(client: AsyncAnthropic, **fields: Any) -> Any:
    async with client.messages.stream(**ASK | fields) as stream:
        return await stream.get_final_message()


async def test_a_whole_answer_and_a_streamed_one_are_the_same(anthropic: AsyncAnthropic, backend: FakeBackend) -> None:
    backend.script, backend.num_hit_tokens = says("hé😀"), 5
    whole = await anthropic.messages.create(**ASK)
    assert plain(whole) == plain(await streamed(anthropic))
    assert whole.content[0].model_dump(exclude_none=True) == {"type": "text", "text": "hé😀"}
    assert (whole.type, whole.role, whole.stop_reason, whole.stop_sequence) == (
        "message",
        "assistant",
        "end_turn",
        None,
    )
    num_prompt = len(backend.requests[0].prompt_token_ids)
    assert (whole.usage.input_tokens, whole.usage.cache_read_input_tokens) == (num_prompt - 5, 5)
    assert whole.usage.output_tokens == len("hé😀".encode()) + 1
    assert backend.requests[0].sampling.max_tokens == 300


async def test_no_tokens_are_a_prompt_that_is_only_computed(anthropic: AsyncAnthropic, backend: FakeBackend) -> None:
    whole = await anthropic.messages.create(**ASK | {"max_tokens": 0})
    assert (whole.content, whole.stop_reason, whole.usage.output_tokens) == ([], "max_tokens", 0)
    assert plain(whole) == plain(await streamed(anthropic, max_tokens=0))
    assert [request.sampling.max_tokens for request in backend.requests] == [1, 1]
    with pytest.raises(sdk.BadRequestError, match="max_tokens must be at least 0"):
        await anthropic.messages.create(**ASK | {"max_tokens": -1})


@pytest.mark.parametrize("fields", [{}, {"disable_parallel_tool_use": True}])
async def test_calls(anthropic: AsyncAnthropic, backend: FakeBackend, fields: Any) -> None:
    backend.script = says(CALLING + "\n" + CALLING[12:])
    ask = {"tools": TOOLS, "tool_choice": {"type": "auto", **fields}}
    whole = await anthropic.messages.create(**ASK | ask)
    assert plain(whole) == plain(await streamed(anthropic, **ask))
    num_calls = 1 if fields else 2
    assert plain(whole)["content"] == [{"type": "text", "text": "Let me see."}] + [TOOL_USE] * num_calls
    assert whole.stop_reason == "tool_use"


@pytest.mark.parametrize("eager", [False, True])
async def test_arguments_that_are_no_json_reach_the_client_and_come_back_as_they_were(
    anthropic: AsyncAnthropic, backend: FakeBackend, eager: bool
) -> None:
    wrong = '{"city": Paris}'
    backend.script = says(f'<tool_call>\n{{"name": "weather", "arguments": {wrong}}}\n</tool_call>')
    ask: dict[str, Any] = {"tools": [TOOLS[0] | ({"eager_input_streaming": True} if eager else {})]}
    whole = await anthropic.messages.create(**ASK | ask)
    assert whole.content[0].input == {"INVALID_JSON": wrong}
    stream = await anthropic.messages.create(**ASK | ask, stream=True)
    deltas = [event.delta for event in [e async for e in stream] if event.type == "content_block_delta"]
    text = "".join(delta.partial_json for delta in deltas if delta.type == "input_json_delta")
    assert (text == wrong, len(deltas) > 1) == (eager, eager)
    first = len(backend.requests[0].prompt_token_ids)
    history = [*ASK["messages"], {"role": "assistant", "content": whole.to_dict()["content"]}]
    await anthropic.messages.create(**ASK | ask | {"messages": [*history, {"role": "user", "content": "?"}]})
    said = bytes(backend.script(backend.requests[0])[:-1])
    assert bytes(i % 256 for i in backend.requests[-1].prompt_token_ids[first : first + len(said)]) == said


async def test_reasoning(model_dir: Path, backend: FakeBackend) -> None:
    tokenizer = Tokenizer.load(model_dir)
    tokenizer.chat_template += "{# <think> #}"
    backend.script = says(f"<think>\n{CALLING}\n</think>\n\nNo.")
    transport = httpx2.ASGITransport(create_app(backend, tokenizer))
    async with httpx2.AsyncClient(transport=transport) as http:
        client = AsyncAnthropic(api_key="-", base_url="http://gateway", http_client=http)
        whole = await client.messages.create(**ASK, tools=TOOLS)
        assert plain(whole) == plain(await streamed(client, tools=TOOLS))
    thinking, text = whole.content
    assert thinking.type == "thinking"
    assert thinking.thinking.strip() == CALLING
    assert thinking.signature
    assert text.type == "text"
    assert text.text.strip() == "No."
    assert whole.stop_reason == "end_turn"


@pytest.mark.parametrize(
    ("fields", "reason", "sequence", "text"),
    [
        ({"stop_sequences": ["lo", "x"]}, "stop_sequence", "lo", "Hel"),
        ({"max_tokens": 3}, "max_tokens", None, "Hel"),
        ({"max_tokens": 3.0}, "max_tokens", None, "Hel"),
        ({"max_tokens": 20000}, "end_turn", None, "Hello"),
    ],
)
async def test_why_it_ended(anthropic: AsyncAnthropic, fields: Any, reason: str, sequence: str, text: str) -> None:
    whole = await anthropic.messages.create(**ASK | fields)
    assert plain(whole) == plain(await streamed(anthropic, **fields))
    assert (whole.stop_reason, whole.stop_sequence, whole.content[0].text) == (reason, sequence, text)


async def test_an_answer_of_nothing(anthropic: AsyncAnthropic, backend: FakeBackend) -> None:
    backend.script = says("")
    whole = await anthropic.messages.create(**ASK)
    assert (whole.content, whole.stop_reason) == ([], "end_turn")
    assert plain(whole) == plain(await streamed(anthropic))


async def test_an_answer_that_has_begun_is_continued(anthropic: AsyncAnthropic, backend: FakeBackend) -> None:
    begun = {"role": "assistant", "content": [{"type": "text", "text": "I think"}]}
    whole = await anthropic.messages.create(**ASK | {"messages": [*ASK["messages"], begun]})
    assert prompt_of(backend).endswith("<|im_start|>assistant\nI think")
    assert whole.content[0].text == "Hello"


async def test_counting_is_what_the_prompt_has(anthropic: AsyncAnthropic, backend: FakeBackend) -> None:
    prompt: dict[str, Any] = {"system": "Be brief.", "tools": TOOLS, "messages": ASK["messages"], "model": "fake"}
    counted = await anthropic.messages.count_tokens(**prompt)
    await anthropic.messages.create(**prompt, max_tokens=1)
    assert counted.input_tokens == len(backend.requests[0].prompt_token_ids)


async def test_models(anthropic: AsyncAnthropic) -> None:
    (model,) = [model async for model in anthropic.models.list()]
    assert (model.id, model.type, model.display_name) == ("fake", "model", "fake")
    assert model.created_at.tzinfo is not None
    assert (await anthropic.models.retrieve("fake")).id == "fake"


async def test_sampling(anthropic: AsyncAnthropic, backend: FakeBackend) -> None:
    fields = {"temperature": 0.5, "top_p": 0.25, "top_k": 7, "seed": 3}  # which newer clients do not name
    await anthropic.messages.create(**ASK, extra_body=fields)
    sampling = backend.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.25, 7, 3)


@pytest.mark.parametrize(
    ("fields", "error", "kind", "names"),
    [
        ({"model": "claude"}, sdk.NotFoundError, "not_found_error", "claude"),
        ({"messages": []}, sdk.BadRequestError, "invalid_request_error", "messages"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            sdk.BadRequestError,
            "invalid_request_error",
            "messages.0.role",
        ),
        ({"temperature": 3}, sdk.BadRequestError, "invalid_request_error", "temperature"),
        ({"max_tokens": -1}, sdk.BadRequestError, "invalid_request_error", "max_tokens"),
        ({"tools": [{"name": "f"}]}, sdk.BadRequestError, "invalid_request_error", "tools.0.input_schema"),
        ({"tool_choice": {"type": "tool", "name": "g"}}, sdk.BadRequestError, "invalid_request_error", "tool_choice"),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, sdk.BadRequestError, "invalid_request_error", "4096"),
    ],
)
async def test_errors(anthropic: AsyncAnthropic, fields: Any, error: type[Any], kind: str, names: str) -> None:
    for stream in (False, True):
        with pytest.raises(error) as caught:
            await anthropic.messages.create(**ASK, extra_body=fields, stream=stream)
        body = caught.value.body
        assert body == {"type": "error", "error": {"type": kind, "message": body["error"]["message"]}}
        assert names in body["error"]["message"]


async def test_keys_and_overload(anthropic: AsyncAnthropic, backend: FakeBackend) -> None:
    with pytest.raises(sdk.AuthenticationError):
        await anthropic.with_options(api_key="other").messages.create(**ASK)
    backend.refusal = OverloadedError("full")
    with pytest.raises(sdk.RateLimitError, match="full"):
        await anthropic.messages.create(**ASK)


async def test_max_tokens_is_asked_for(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/messages", json={"messages": ASK["messages"]})
    assert answer.status_code == 400
    assert "max_tokens" in answer.json()["error"]["message"]


async def test_a_failure_amid_a_stream(anthropic: AsyncAnthropic, backend: FakeBackend) -> None:
    backend.failure = (2, DualPathError("lost it"))
    with pytest.raises(sdk.APIStatusError, match="lost it"):
        await streamed(anthropic)


async def test_a_long_wait_has_pings_behind_the_start(backend: FakeBackend, serving: Serving) -> None:
    backend.pause_s = 0.2
    async with serving(backend, settings=GatewaySettings(stream_ping_s=0.05)) as url, httpx.AsyncClient() as http:
        answer = await http.post(f"{url}/v1/messages", json=ASK | {"stream": True, "max_tokens": 2})
    kinds = [event["type"] for event in events_of(answer.text)]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert answer.headers["request-id"]


async def test_what_claude_code_sends(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.max_context_tokens = 4096
    cached = {"cache_control": {"type": "ephemeral"}}
    body = {
        "model": "fake",
        "max_tokens": 32000,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.0.abc"},
            {"type": "text", "text": "You are Claude Code.", **cached},
            {"type": "text", "text": "Be brief.", **cached},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi", **cached}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}, {"id": "t1", **TOOL_USE}]},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "no such city", "is_error": True, **cached},
                    {"type": "text", "text": "go on"},
                ],
            },
            {"role": "system", "content": "Stay calm."},
        ],
        "tools": [*TOOLS, {"type": "web_search_20250305", "name": "web_search"}],
        "metadata": {"user_id": "u"},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": []},
        "output_config": {"effort": "high"},
        "anything": [1],
    }
    answer = await http.post("/v1/messages?beta=true", json=body, headers={"anthropic-beta": "a,b"})
    assert answer.status_code == 200, answer.text
    prompt = prompt_of(backend)
    assert "billing" not in prompt
    assert "web_search" not in prompt
    assert "You are Claude Code.\nBe brief." in prompt
    call = json.dumps({"name": "weather", "arguments": {"city": "Paris"}})
    assert f"<|im_start|>assistant\nLet me see.\n<tool_call>\n{call}\n</tool_call><|im_end|>" in prompt
    assert "<tool_response>\nError: no such city\n</tool_response>" in prompt
    assert prompt.endswith(
        "<|im_start|>user\ngo on<|im_end|>\n<|im_start|>system\nStay calm.<|im_end|>\n<|im_start|>assistant\n"
    )

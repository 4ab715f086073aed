"""/v1/responses through OpenAI's own client: items, tools, reasoning, streams, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai as sdk
import pytest
from openai import AsyncOpenAI
from tests.gateway.fakes import FakeBackend, says
from tests.gateway.sse import events_of
from tests.gateway.test_chat import CALLING, prompt_of
from tests.gateway.test_errors import check

from dualpath.core.errors import DualPathError, OverloadedError
from dualpath.gateway.app import create_app
from dualpath.gateway.text.tokenizer import Tokenizer

ASK: dict[str, Any] = {"model": "fake", "input": "hi"}
TOOLS: list[Any] = [{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}]

SHOWS_REASONING = """
{%- for m in messages %}[{{ m.role }}]
    {%- if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{- m.content }}
    {%- for c in m.tool_calls %}
        {{- '\\n<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' + c.function.arguments }}
        {{- '}\\n</tool_call>' }}
    {%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}{# tools #}"""


@pytest.fixture(autouse=True)
def large_context(backend: FakeBackend) -> None:
    backend.max_context_tokens = 4096


def plain(response: Any) -> dict[str, Any]:
    """Without what is made anew for each answer."""
    fields: dict[str, Any] = response.model_dump(exclude_none=True, exclude={"id", "created_at"})
    fields.get("usage", {}).pop("output_tokens_details", None)
    for item in fields["output"]:
        item.pop("id", None), item.pop("call_id", None)
    return fields


async def streamed(client: AsyncOpenAI, **fields: Any) -> Any:
    async with client.responses.stream(**ASK | fields) as stream:
        async for _ in stream:
            pass
        return await stream.get_final_response()


async def test_a_whole_answer_and_a_streamed_one_are_the_same(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script, backend.num_hit_tokens = says("hé😀"), 5
    whole = await openai.responses.create(**ASK, instructions="Be brief.", metadata={"a": "b"})
    assert plain(whole)["output"] == plain(await streamed(openai, instructions="Be brief."))["output"]
    assert (whole.output_text, whole.status, whole.object, whole.store) == ("hé😀", "completed", "response", False)
    assert whole.usage is not None
    assert whole.usage.input_tokens_details.cached_tokens == 5
    assert whole.usage.input_tokens == len(backend.requests[0].prompt_token_ids)
    assert whole.metadata == {"a": "b"}
    assert prompt_of(backend).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>")


async def test_calls(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = says(CALLING)
    whole = await openai.responses.create(**ASK, tools=TOOLS, tool_choice="auto")
    assert plain(whole)["output"] == plain(await streamed(openai, tools=TOOLS, tool_choice="auto"))["output"]
    message, call = whole.output
    assert message.type == "message"
    assert call.type == "function_call"
    assert (call.name, call.arguments, call.namespace) == ("weather", '{"city":"Paris"}', None)


async def test_calls_into_namespaces(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    tools: list[Any] = [
        {"type": "namespace", "name": "mcp__sky__", "description": "d", "tools": TOOLS},
        {"type": "web_search"},
        {"type": "namespace", "name": "old", "description": "d", "tools": [{"type": "custom", "name": "x"}]},
    ]
    backend.script = says(CALLING.replace("weather", "mcp__sky__weather"))
    whole = await openai.responses.create(**ASK, tools=tools)
    assert '"name": "mcp__sky__weather"' in prompt_of(backend)
    assert "web_search" not in prompt_of(backend)
    call = whole.output[1]
    assert call.type == "function_call"
    assert (call.namespace, call.name) == ("mcp__sky__", "weather")
    items: list[Any] = [{"role": "user", "content": "hi"}, *[item.model_dump(mode="json") for item in whole.output]]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    first = [*backend.requests[0].prompt_token_ids, *backend.script(backend.requests[0])]
    await openai.responses.create(model="fake", input=items, tools=tools)
    assert list(backend.requests[1].prompt_token_ids[: len(first)]) == first


async def test_every_event_of_a_call_has_the_name_of_its_item(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = says(CALLING.replace("weather", "mcp__sky__weather"))
    tools: list[Any] = [{"type": "namespace", "name": "mcp__sky__", "description": "d", "tools": TOOLS}]
    stream = await openai.responses.create(**ASK, tools=tools, stream=True)
    events = [event.model_dump() async for event in stream]
    told = [event.get("name") or event.get("item", {}).get("name") for event in events]
    assert [name for name in told if name] == ["weather"] * 3


async def test_what_other_servers_left_in_the_input(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    left: list[Any] = [
        {"type": "program", "id": "p", "call_id": "c", "code": "x()", "fingerprint": "f"},
        {"type": "program_output", "id": "o", "call_id": "c", "result": "x", "status": "completed"},
        {"type": "local_shell_call", "id": "l", "call_id": "s", "status": "completed", "action": {"command": ["ls"]}},
        {"type": "local_shell_call_output", "id": "s", "output": "a.txt"},  # it has no call_id
    ]
    await openai.responses.create(model="fake", input=[{"role": "user", "content": "hi"}, *left])
    prompt = prompt_of(backend)
    assert "x()" not in prompt
    assert '"name": "local_shell"' in prompt
    assert prompt.count("<tool_response>\na.txt\n</tool_response>") == prompt.count("<tool_response>") == 1


@pytest.mark.parametrize("carries", ["content", "encrypted_content"])
async def test_reasoning_is_carried_to_the_next_turn(model_dir: Path, backend: FakeBackend, carries: str) -> None:
    inner = Tokenizer.load(model_dir)._inner
    inner.chat_template = SHOWS_REASONING
    tokenizer = Tokenizer(inner)
    backend.script = says(f"<think>hm</think>{CALLING}")
    transport = httpx.ASGITransport(create_app(backend, tokenizer))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway/v1") as http:
        client = AsyncOpenAI(api_key="-", base_url="http://gateway/v1", http_client=http)
        ask: dict[str, Any] = {"tools": TOOLS, "include": ["reasoning.encrypted_content"], "store": False}
        ask["reasoning"] = {"summary": "auto"}
        whole = await client.responses.create(**ASK | ask)
        assert plain(whole)["output"] == plain(await streamed(client, **ask))["output"]
        reasoning = whole.output[0]
        assert reasoning.type == "reasoning"
        assert [part.text for part in reasoning.content or []] == ["hm"]
        assert reasoning.encrypted_content
        assert (reasoning.summary, whole.reasoning and whole.reasoning.summary) == ([], None)  # it is shown whole
        item = {"type": "reasoning", "summary": [], carries: reasoning.model_dump()[carries]}
        items: list[Any] = [{"role": "user", "content": "hi"}, item, *whole.output[1:]]
        items.append({"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]})
        await client.responses.create(model="fake", input=items, tools=TOOLS)
    assert prompt_of(backend) == f"[user]hi[assistant]<think>hm</think>{CALLING}[tool]x[assistant]"


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ({"max_output_tokens": 3}, "incomplete", "max_output_tokens"),
        ({"max_output_tokens": 1e5}, "completed", None),
        ({"background": False, "truncation": "auto", "store": True, "prompt_cache_key": "k"}, "completed", None),
    ],
)
async def test_how_it_ended(openai: AsyncOpenAI, fields: Any, status: str, reason: str | None) -> None:
    whole = await openai.responses.create(**ASK | fields)
    assert plain(whole) == plain(await openai.responses.create(**ASK | fields))
    assert whole.status == status
    assert (whole.incomplete_details and whole.incomplete_details.reason) == reason
    assert whole.output[0].status == status


async def test_an_answer_of_nothing_has_a_message_of_nothing(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script = says("")
    whole = await openai.responses.create(**ASK)
    assert [item.type for item in whole.output] == ["message"]
    assert plain(whole)["output"] == plain(await streamed(openai))["output"]


async def test_logprobs(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    ask: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = await openai.responses.create(**ASK | ask)
    assert plain(whole)["output"] == plain(await streamed(openai, **ask))["output"]
    part = whole.output[0].content[0]
    assert part.type == "output_text"
    assert [token.token for token in part.logprobs or []][:5] == list("Hello")
    assert [len(token.top_logprobs) for token in part.logprobs or []][:5] == [2] * 5


async def test_counting_is_what_the_prompt_has(openai: AsyncOpenAI, backend: FakeBackend) -> None:
    counted = await openai.responses.input_tokens.count(**ASK, tools=TOOLS)
    await openai.responses.create(**ASK, tools=TOOLS)
    assert counted.input_tokens == len(backend.requests[0].prompt_token_ids)


@pytest.mark.parametrize("stream", [False, True])
async def test_items_may_be_referred_to_by_their_id(openai: AsyncOpenAI, backend: FakeBackend, stream: bool) -> None:
    backend.script = says(CALLING)
    ask: dict[str, Any] = {"tools": TOOLS}
    whole = await streamed(openai, **ask) if stream else await openai.responses.create(**ASK | ask)
    user, result = (
        {"role": "user", "content": "hi"},
        {"type": "function_call_output", "call_id": "c", "output": "sunny"},
    )
    first_item, *others = [{"type": "item_reference", "id": item.id} for item in whole.output]
    del first_item["type"]  # it may be left out
    items: list[Any] = [user, first_item, *others, result]
    first = [*backend.requests[0].prompt_token_ids, *backend.script(backend.requests[0])]
    await openai.responses.create(model="fake", input=items, **ask)
    assert list(backend.requests[1].prompt_token_ids[: len(first)]) == first
    forgotten = await openai.responses.create(**ASK, **ask, store=False)
    with pytest.raises(sdk.BadRequestError, match="is not kept here"):
        await openai.responses.create(model="fake", input=[{"type": "item_reference", "id": forgotten.output[0].id}])


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,eA=="}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"type": "message", "role": "tool"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "spell"}]}, "input[0].type"),
        ({"input": [{"type": [1]}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"previous_response_id": "resp-1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "g"}, "tools": TOOLS}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"input": "x" * 9000}, "input"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "p"}}}, "text.format"),
    ],
)
async def test_errors(http: httpx.AsyncClient, backend: FakeBackend, fields: Any, param: str) -> None:
    said = check(await http.post("/v1/responses", json=ASK | fields), 400, param)
    assert not said.startswith(("messages", "max_tokens", "response_format")), "these are names of the chat API"
    assert backend.requests == []


async def test_failures(http: httpx.AsyncClient, openai: AsyncOpenAI, backend: FakeBackend) -> None:
    check(await http.post("/v1/responses", json=ASK | {"model": "gpt"}), 404, "model", "model_not_found")
    backend.refusal = OverloadedError("full")
    with pytest.raises(sdk.RateLimitError):
        await openai.responses.create(**ASK)
    backend.refusal, backend.failure = None, (2, DualPathError("lost it"))
    stream = await openai.responses.create(**ASK, stream=True)
    events = [event async for event in stream]
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert events[-1].response.error.message == "lost it"


async def test_what_codex_sends(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    text = {"type": "input_text"}
    body = {
        "model": "fake",
        "stream": True,
        "store": False,
        "input": [
            {
                "type": "message",
                "role": "developer",
                "content": [{**text, "text": "Rules."}, {**text, "text": "More."}],
            },
            {"type": "message", "role": "user", "content": [{**text, "text": "hi"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA-somebody-else's"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Paris"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "*** Begin"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
            {"type": "message", "role": "user", "content": [{**text, "text": "go on"}]},
        ],
        "tools": [*TOOLS, {"type": "web_search", "external_web_access": False}, {"type": "custom", "name": "x"}],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "client_metadata": {"a": "b"},
    }
    answer = await http.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    events = events_of(answer.text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[0] == "response.created"
    assert kinds[-2:] == ["response.output_item.done", "response.completed"]
    prompt = prompt_of(backend)
    assert prompt.startswith("<|im_start|>system\nRules.\nMore.\n\n# Tools")
    assert f"<|im_start|>assistant\n{CALLING}<|im_end|>" in prompt
    assert '{"name": "apply_patch", "arguments": {"input": "*** Begin"}}' in prompt
    assert "<tool_response>\ndone\n</tool_response>" in prompt
    assert prompt.endswith("<|im_start|>user\ngo on<|im_end|>\n<|im_start|>assistant\n")

"""A second turn's prompt begins with the first one's and what the model wrote, by every API and in every family's form.

The templates are of the families' kind, reduced to that.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from tests.gateway.fakes import EOS_ID, FakeBackend
from tokenizers import AddedToken

from dualpath.gateway.app import create_app
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.models.init_tokenizer import byte_tokenizer

ARGUMENTS = json.dumps({"city": 'a "q"\né', "days": 2}, ensure_ascii=False)
WRITTEN = "{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}"
# As Kimi's: a call's id is shown again.
IDS = (
    "{{ m.content }}{%- for c in m.tool_calls %}<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>"
    + WRITTEN
    + "<|tool_call_end|>{%- endfor %}{# <|tool_calls_section_begin|> #}"
)
SAID_IDS = f"I look.<|tool_call_begin|>functions.weather:3<|tool_call_argument_begin|>{ARGUMENTS}<|tool_call_end|>"
# As MiniMax': line breaks of the template's own around what was thought and said.
TAGS = (
    "<think>{{ '\\n' + m.reasoning_content + '\\n' }}</think>{{ '\\n\\n' + m.content + '\\n' }}"
    "{{ '<minimax:tool_call>\\n' }}"
    "{%- for c in m.tool_calls %}{{ '<invoke name=\"' + c.function.name + '\">\\n' }}"
    "{%- for k, v in c.function.arguments.items() %}"
    '<parameter name="{{ k }}">{{ v }}'
    "{{ '</parameter>\\n' }}{%- endfor %}</invoke>{{ '\\n' }}{%- endfor %}</minimax:tool_call>"
)
SAID_TAGS = (
    'Hm.\n</think>\n\nI look.\n<minimax:tool_call>\n<invoke name="weather">\n'
    '<parameter name="city">a "q"\né</parameter>'
    '\n<parameter name="days">2</parameter>\n</invoke>\n</minimax:tool_call>'
)
# As Ministral's: reasoning is a part of content.
PARTS = (
    "{%- if m.content is string %}{{ m.content }}{%- else %}{%- for p in m.content %}"
    "{{ '[THINK]' + p.thinking + '[/THINK]' if p.type == 'thinking' else p.text }}{%- endfor %}{%- endif %}"
    "{%- for c in m.tool_calls %}[TOOL_CALLS]{{ c.function.name }}[ARGS]" + WRITTEN + "{%- endfor %}"
)
SAID_PARTS = f"[THINK]Hm.[/THINK]I look.[TOOL_CALLS]weather[ARGS]{ARGUMENTS}"
FAMILIES = {  # what opens an answer, what the template shows of one, what the model wrote
    "ids": ("", IDS, SAID_IDS),
    "tags": ("<think>\n", TAGS, SAID_TAGS),
    "parts": ("", PARTS, SAID_PARTS),
}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}


def tokenizer_of(family: str) -> tuple[Tokenizer, list[int]]:
    """With marks that are special tokens, and what the model answers."""
    opened, assistant, answer = FAMILIES[family]
    inner = byte_tokenizer(4096)
    marks = ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<minimax:tool_call>", "[TOOL_CALLS]", "[THINK]")
    inner.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    inner.chat_template = (
        "{%- for m in messages %}[{{ m.role }}]{%- if m.role == 'assistant' %}"
        + assistant
        + "{%- else %}{{ m.content }}{%- endif %}{%- endfor %}{# tools #}"
        "{%- if add_generation_prompt %}{{ '[assistant]" + opened.replace("\n", "\\n") + "' }}{%- endif %}"
    )
    tokenizer = Tokenizer(inner)
    return tokenizer, tokenizer.encode(answer, add_special_tokens=False)


async def by_chat(client: httpx.AsyncClient) -> None:
    function = {"name": "weather", "parameters": SCHEMA}
    body: dict[str, Any] = {
        "tools": [{"type": "function", "function": function}],
        "messages": [{"role": "user", "content": "hi"}],
    }
    message = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]["message"]
    (call,) = message["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": 'a "q"\né', "days": 2}
    body["messages"] += [message, {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}]
    (await client.post("/v1/chat/completions", json=body)).raise_for_status()


async def by_messages(client: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {
        "model": "fake",
        "max_tokens": 900,
        "tools": [{"name": "weather", "input_schema": SCHEMA}],
        "messages": [{"role": "user", "content": "hi"}],
    }
    content = (await client.post("/v1/messages", json=body)).json()["content"]
    call = content[-1]
    assert call["input"] == {"city": 'a "q"\né', "days": 2}
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "sunny"}
    body["messages"] += [{"role": "assistant", "content": content}, {"role": "user", "content": [result]}]
    (await client.post("/v1/messages", json=body)).raise_for_status()


async def by_responses(client: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {
        "model": "fake",
        "include": ["reasoning.encrypted_content"],
        "tools": [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}],
        "input": [{"role": "user", "content": "hi"}],
    }
    output = (await client.post("/v1/responses", json=body)).json()["output"]
    call = output[-1]
    assert json.loads(call["arguments"]) == {"city": 'a "q"\né', "days": 2}
    body["input"] += [*output, {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}]
    (await client.post("/v1/responses", json=body)).raise_for_status()


@pytest.mark.parametrize("by", [by_chat, by_messages, by_responses])
@pytest.mark.parametrize("family", FAMILIES)
async def test_a_second_turn_begins_with_the_first(backend: FakeBackend, family: str, by: Any) -> None:
    tokenizer, answer = tokenizer_of(family)
    backend.script = lambda _: [*answer, EOS_ID]
    transport = httpx.ASGITransport(create_app(backend, tokenizer), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        await by(client)
    first, second = (list(request.prompt_token_ids) for request in backend.requests)
    wrote = tokenizer.decode([*first, *answer], skip_special_tokens=False)
    assert tokenizer.decode(second, skip_special_tokens=False).startswith(wrote)
    assert second[: len(first) + len(answer)] == [*first, *answer]

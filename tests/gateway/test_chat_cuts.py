"""A streamed chat answer is the whole one, wherever the model's tokens were cut, and of OpenAI's types."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tests.gateway.cutting import USAGE, deltas, job, reading
from tests.gateway.sse import events_of

from dualpath.gateway.openai.chat_writer import ChatWriter
from dualpath.gateway.openai.sampling import Output
from dualpath.gateway.text.choice import Delta
from dualpath.gateway.text.tokenizer import Tokenizer


def assembled(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": []}
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
        delta = chunk["choices"][0]["delta"]
        for name in ("content", "reasoning_content"):
            message[name] += delta.get(name) or ""
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({**call["function"]})
            else:
                message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
    return {**message, "finish_reason": chunks[-1]["choices"][0]["finish_reason"]}


def plain(whole: dict[str, Any]) -> dict[str, Any]:
    ChatCompletion.model_validate(whole)
    choice = whole["choices"][0]
    message = choice["message"]
    return {
        "role": message["role"],
        "content": message["content"] or "",
        "reasoning_content": message.get("reasoning_content", ""),
        "tool_calls": [call["function"] for call in message.get("tool_calls", ())],
        "finish_reason": choice["finish_reason"],
    }


@settings(max_examples=200, deadline=None)
@given(pieces=deltas())
def test_streaming_is_not_streaming(tokenizer: Tokenizer, pieces: list[Delta]) -> None:
    output = Output((), False, True, False, False, None)
    streaming, other = (ChatWriter(job(), tokenizer, output, reading=reading()) for _ in range(2))
    chunks = events_of(b"".join(streaming.chunk(delta) for delta in pieces) + streaming.end(USAGE))
    other.add(Delta(0, "".join(delta.text for delta in pieces), finish_reason=pieces[-1].finish_reason))
    assert assembled(chunks) == plain(json.loads(other.whole(USAGE)))

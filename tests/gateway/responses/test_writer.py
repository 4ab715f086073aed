"""A streamed response is the whole one, wherever the model's tokens were cut, and all of it is of OpenAI's types."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from tests.gateway.cutting import USAGE, deltas, job, reading
from tests.gateway.sse import events_of

from dualpath.gateway.errors import SERVER_ERROR, ApiError
from dualpath.gateway.responses.bodies import ResponsesBody
from dualpath.gateway.responses.output import OutputItems
from dualpath.gateway.responses.tools import tools_of
from dualpath.gateway.responses.writer import ResponseWriter
from dualpath.gateway.text.blocks import Blocks
from dualpath.gateway.text.choice import Delta

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOLS = [{"type": "namespace", "name": "n", "description": "", "tools": [{"type": "function", "name": "f"}]}]


def writer(**more: Any) -> ResponseWriter:
    body = msgspec.convert({"input": "hi", "tools": TOOLS, "max_output_tokens": 7, **more}, ResponsesBody)
    items = OutputItems("resp-1", tools_of(TOOLS), seals=True)
    return ResponseWriter(job(), body, Blocks(reading().parser()), items)


def assembled(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items put together of deltas, each the same as what is said when it is done."""
    items: list[dict[str, Any]] = []
    for number, event in enumerate(events):
        EVENT.validate_python(event)
        assert event["sequence_number"] == number
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            items.append(event["item"])
        elif kind == "content_part.added":
            items[-1]["content"].append(event["part"])
        elif kind in ("output_text.delta", "reasoning_text.delta"):
            items[-1]["content"][0]["text"] += event["delta"]
        elif kind == "function_call_arguments.delta":
            items[-1]["arguments"] += event["delta"]
        elif kind == "function_call_arguments.done":
            assert items[-1]["arguments"] == event["arguments"]
        elif kind in ("output_text.done", "reasoning_text.done"):
            assert items[-1]["content"][0]["text"] == event["text"]
        elif kind == "content_part.done":
            assert items[-1]["content"] == [event["part"]]
        elif kind == "output_item.done":
            said = event["item"]
            items[-1] |= {name: said[name] for name in ("status", "encrypted_content") if name in said}
            assert items[-1] == said
    return items


def without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in item.items() if name != "call_id"} for item in items]


@settings(max_examples=200, deadline=None)
@given(deltas())
def test_streaming_is_not_streaming(pieces: list[Delta]) -> None:
    streaming, other = writer(), writer()
    stream = b"".join(streaming.chunk(delta) for delta in pieces)
    stream = streaming.begin(USAGE) + stream  # which is made when there is something behind it
    stream = stream + streaming.end(USAGE)
    other.add(Delta(0, "".join(delta.text for delta in pieces), finish_reason=pieces[-1].finish_reason))
    whole = json.loads(other.whole(USAGE))
    Response.model_validate(whole)
    events = events_of(stream)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]["response"]
    assert events[-1]["type"] == f"response.{whole['status']}"
    assert assembled(events) == last["output"]
    assert without_ids(last.pop("output")) == without_ids(whole.pop("output"))
    for response in (last, whole):
        response.pop("created_at")
        response["usage"].pop("output_tokens_details")  # tokens are counted where they came with text
    assert last == whole


def test_a_failure_repeats_nothing_of_what_was_sent() -> None:
    """It may be what failed."""
    made = writer(metadata={"x": object()})
    with pytest.raises(TypeError):
        made.begin(USAGE)
    (event,) = events_of(made.failed(ApiError(500, "lost it", error_type=SERVER_ERROR)))
    EVENT.validate_python(event)
    assert event["response"]["error"] == {"code": "server_error", "message": "lost it"}

"""A streamed message is the whole one, wherever the model's tokens were cut."""

from __future__ import annotations

import json
from typing import Any

from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given, settings
from pydantic import TypeAdapter
from tests.gateway.cutting import USAGE, deltas, job, reading
from tests.gateway.sse import events_of

from dualpath.gateway.anthropic.writer import MessageWriter
from dualpath.gateway.text.choice import Delta

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
FIELDS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


def assembled(events: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = events[0]["message"]
    for event in events[1:]:
        EVENT.validate_python(event)
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            if delta["type"] == "input_json_delta":
                block["input"] = json.loads(delta["partial_json"])
            else:
                block[FIELDS[delta["type"]]] += delta[FIELDS[delta["type"]]]
        elif event["type"] == "message_delta":
            message |= event["delta"] | {"usage": event["usage"]}
    return message


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    for block in message["content"]:
        block.pop("id", None)
    return message


@settings(max_examples=200, deadline=None)
@given(deltas())
def test_streaming_is_not_streaming(pieces: list[Delta]) -> None:
    writer, other = MessageWriter(job(), reading()), MessageWriter(job(), reading())
    stream = writer.begin(USAGE) + b"".join(writer.chunk(delta) for delta in pieces) + writer.end(USAGE)
    text = "".join(delta.text for delta in pieces)
    other.add(Delta(0, text, finish_reason=pieces[-1].finish_reason))
    whole = json.loads(other.whole(USAGE))
    Message.model_validate(whole)
    events = events_of(stream)
    assert events[-1] == {"type": "message_stop"}
    assert without_ids(assembled(events)) == without_ids(whole)

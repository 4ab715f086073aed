"""Server-sent events as bytes, of every API: JSON in one line behind ``data:``, written and read."""

from __future__ import annotations

from typing import Any

import msgspec

from dualpath.gateway.openai.shapes import json_line

DONE = b"[DONE]"
SSE_DONE = b"data: " + DONE + b"\n\n"


def sse(payload: object) -> bytes:
    """``payload``: what msgspec encodes; msgspec.Raw is JSON already."""
    return b"data: " + json_line(payload) + b"\n\n"


def named(payload: dict[str, Any]) -> bytes:
    """As Anthropic's API and OpenAI's Responses send it: the event's name is its type."""
    return b"event: " + str(payload["type"]).encode() + b"\n" + sse(payload)


def data_of(event: bytes) -> bytes:
    """Empty where there is none: a comment, a ping."""
    return b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))


def with_data(event: bytes, content: Any) -> bytes:
    """The same event with other data."""
    others = [line + b"\n" for line in event.splitlines() if line and not line.startswith(b"data:")]
    return b"".join(others) + sse(content)


def decode(data: bytes) -> Any:
    """None for what is no JSON."""
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return None

"""/v1/messages' answers: a message with its blocks, or the events that make one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from dualpath.core.request import FinishReason
from dualpath.gateway.answer_writer import AnswerWriter
from dualpath.gateway.anthropic.blocks import INVALID_JSON
from dualpath.gateway.errors import ApiError
from dualpath.gateway.job import GenerationJob
from dualpath.gateway.openai.shapes import Usage, encode_json
from dualpath.gateway.sse import named
from dualpath.gateway.text.answer import AnswerReading
from dualpath.gateway.text.blocks import Block, Blocks, Kind, Move, Step
from dualpath.gateway.text.choice import Delta

# Reasoning is not signed here; clients that find no signature would not send it back.
_SIGNATURE = "dualpath"


class MessageWriter(AnswerWriter):
    ping = named({"type": "ping"})

    def __init__(self, job: GenerationJob, reading: AnswerReading, *, eager_tools: Collection[str] = ()) -> None:
        """Arguments are sent when they are complete, as only then it is known whether they are an object; those of
        ``eager_tools`` as they come, whatever they are."""
        self._job = job
        self._blocks = Blocks(reading.parser())
        self._eager_tools = eager_tools

    def begin(self, usage: Usage) -> bytes:
        message = self._message([], usage)
        return named({"type": "message_start", "message": message})

    def chunk(self, delta: Delta) -> bytes:
        return b"".join(named(payload) for step in self._blocks.read(delta) for payload in self._events(step))

    def end(self, usage: Usage) -> bytes:
        ended = {"stop_reason": self._stop_reason(), "stop_sequence": self._stop_sequence()}
        last = {"type": "message_delta", "delta": ended, "usage": _usage(usage)}
        return named(last) + named({"type": "message_stop"})

    def failed(self, error: ApiError) -> bytes:
        return named(msgspec.json.decode(error.anthropic_body()))

    def add(self, delta: Delta) -> None:
        self._blocks.read(delta)

    def whole(self, usage: Usage) -> bytes:
        message = self._message([_whole(block) for block in self._blocks.blocks], usage)
        message |= {"stop_reason": self._stop_reason(), "stop_sequence": self._stop_sequence()}
        body: bytes = encode_json(message)
        return body

    def _message(self, content: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        return {
            "id": self._job.job_id,
            "type": "message",
            "role": "assistant",
            "model": self._job.model_name,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(usage),
        }

    def _events(self, step: Step) -> list[dict[str, Any]]:
        block, is_call = step.block, step.block.kind is Kind.CALL
        is_late = is_call and block.name not in self._eager_tools
        if step.move is Move.OPEN:
            return [{"type": "content_block_start", "index": block.index, "content_block": _opened(block)}]
        if step.move is Move.ADD:
            return [] if is_late else [_delta(block, step.text)]
        events: list[dict[str, Any]] = []
        if is_late:
            events.append(_delta(block, arguments_object(block.text).decode()))
        elif block.kind is Kind.REASONING:
            signature = {"type": "signature_delta", "signature": _SIGNATURE}
            events.append({"type": "content_block_delta", "index": block.index, "delta": signature})
        return [*events, {"type": "content_block_stop", "index": block.index}]

    def _stop_reason(self) -> str:
        last = self._last()
        if last.finish_reason == FinishReason.LENGTH.value:
            return "max_tokens"
        if self._blocks.has_calls:
            return "tool_use"
        return "end_turn" if self._stop_sequence() is None else "stop_sequence"

    def _stop_sequence(self) -> str | None:
        reason = self._last().stop_reason
        return reason if isinstance(reason, str) else None

    def _last(self) -> Delta:
        last = self._blocks.last
        assert last is not None, "a job that ended well has ended its choice"
        return last


def arguments_object(text: str) -> bytes:
    """Arguments as JSON that is an object in any case, as they were written where they are one."""
    raw = text.encode()
    try:
        if isinstance(msgspec.json.decode(raw), dict):
            return raw
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    wrapped: bytes = encode_json({INVALID_JSON: text})
    return wrapped


def _usage(usage: Usage) -> dict[str, int]:
    """As Anthropic counts: what was read from the cache is no input."""
    num_cached = usage.prompt_tokens_details.cached_tokens
    return {
        "input_tokens": usage.prompt_tokens - num_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": num_cached,
        "output_tokens": usage.completion_tokens,
    }


def _opened(block: Block) -> dict[str, Any]:
    if block.kind is Kind.CONTENT:
        return {"type": "text", "text": ""}
    if block.kind is Kind.REASONING:
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": {}}


def _delta(block: Block, text: str) -> dict[str, Any]:
    delta = {
        Kind.CONTENT: {"type": "text_delta", "text": text},
        Kind.REASONING: {"type": "thinking_delta", "thinking": text},
        Kind.CALL: {"type": "input_json_delta", "partial_json": text},
    }[block.kind]
    return {"type": "content_block_delta", "index": block.index, "delta": delta}


def _whole(block: Block) -> dict[str, Any]:
    opened = _opened(block)
    if block.kind is Kind.CONTENT:
        return opened | {"text": block.text}
    if block.kind is Kind.REASONING:
        return opened | {"thinking": block.text, "signature": _SIGNATURE}
    return opened | {"input": msgspec.Raw(arguments_object(block.text))}

"""Whether tool calls are read in the form in which the model's chat template shows them, found out at start.

A form that nobody knows would come out as content, without a word: an agent stops there.
"""

from __future__ import annotations

from typing import Any

from dualpath.core.errors import InvalidRequestError
from dualpath.gateway.errors import ApiError
from dualpath.gateway.openai.bodies import ChatBody
from dualpath.gateway.openai.messages import conversation_text
from dualpath.gateway.text.answer import AnswerFormat
from dualpath.gateway.text.pieces import CallDelta
from dualpath.gateway.text.tokenizer import Tokenizer

_NAME, _ASKED = "probe_function", "probe-asked"
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "",
        "parameters": {"type": "object", "properties": {"probe": {"type": "string"}}},
    },
}


def reads_own_calls(tokenizer: Tokenizer, form: AnswerFormat) -> bool | None:
    """None: the template shows no calls, or none are to be read."""
    if not tokenizer.template_needs.takes_tools or form.calls is None:
        return None
    called = {"id": "probe0001", "type": "function", "function": {"name": _NAME, "arguments": '{"probe": "value"}'}}
    asked: list[dict[str, Any]] = [{"role": "user", "content": _ASKED}]
    try:
        text = _text(tokenizer, [*asked, {"role": "assistant", "content": None, "tool_calls": [called]}], False)
        before = _text(tokenizer, asked, True)
    except (ApiError, InvalidRequestError):
        return None
    shown = text.rpartition(_ASKED)[2]
    if _NAME not in shown:
        return None
    # Calls without a mark are such only where an answer begins.
    answers = [shown, text.removeprefix(before)]
    return any(_is_read(form, answer) for answer in answers)


def _text(tokenizer: Tokenizer, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
    body = ChatBody(messages=messages, tools=[_TOOL], add_generation_prompt=add_generation_prompt)
    return conversation_text(tokenizer, body, max_containers=8)


def _is_read(form: AnswerFormat, answer: str) -> bool:
    parser = form.reading("", tools=[_TOOL]).parser()
    pieces = parser.push(answer) + parser.close()
    return any(isinstance(piece, CallDelta) and piece.name == _NAME for piece in pieces)

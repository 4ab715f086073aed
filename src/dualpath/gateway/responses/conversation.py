"""From the Responses API's body to the chat body that every API's answer is planned from."""

from __future__ import annotations

import re
from typing import Any

from dualpath.core.errors import InvalidRequestError
from dualpath.gateway.errors import invalid
from dualpath.gateway.openai.bodies import ChatBody
from dualpath.gateway.responses.bodies import InputBody, ResponsesBody
from dualpath.gateway.responses.items import Recall, messages_of
from dualpath.gateway.responses.tools import Tools, choice_of, tools_of

LOGPROBS = "message.output_text.logprobs"  # to be included
_SAME = (
    *("stream", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "ignore_eos", "cache_salt"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)
_PARAMS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
}
_FIELD = re.compile(rf"({'|'.join(map(re.escape, _PARAMS))})(?!\[)\b")


def chat_body(body: InputBody, recall: Recall) -> tuple[ChatBody, Tools]:
    """``recall`` finds what an item refers to. Raises InvalidRequestError for what needs a memory, and for what the
    model cannot be shown."""
    if body.previous_response_id:
        raise invalid(
            "responses are not kept here: send the whole conversation as input instead of previous_response_id",
            "previous_response_id",
            "previous_response_not_found",
        )
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    chat = ChatBody(messages=messages + messages_of(items, recall), model=body.model)
    tools, choice = choice_of(body.tool_choice, tools_of(body.tools or []))
    chat.tools, chat.tool_choice = tools.chat or None, choice  # type: ignore[assignment]  # one of the three words
    chat.parallel_tool_calls, chat.chat_template_kwargs = body.parallel_tool_calls, body.chat_template_kwargs
    if body.reasoning is not None:
        chat.reasoning_effort = body.reasoning.effort
    if body.text is not None and body.text.format is not None:
        chat.response_format = _response_format(body.text.format)
    if isinstance(body, ResponsesBody):
        chat.max_tokens = body.max_output_tokens
        for name in _SAME:
            setattr(chat, name, getattr(body, name))
        if body.top_logprobs or LOGPROBS in (body.include or ()):
            chat.logprobs, chat.top_logprobs = True, body.top_logprobs
    return chat, tools


def renamed(error: InvalidRequestError) -> InvalidRequestError:
    """With the names that fields have in this API."""
    param = error.param and _renamed(error.param)
    return invalid(_renamed(str(error)), param, error.code)


def _renamed(text: str) -> str:
    """``text`` begins with a field's name, or has none."""
    name = _FIELD.match(text)
    return text if name is None else _PARAMS[name[0]] + text[name.end() :]


def _response_format(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}

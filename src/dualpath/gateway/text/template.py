"""What a model's chat template expects of a conversation, found out by rendering one with a tool call in it.

Templates read the same message in different ways, and what they do not read is lost without a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_NAME = "probe_function"
_TEXT = '{"probe":"value"}'  # spaced as no serialiser spaces it


@dataclass(frozen=True, slots=True)
class TemplateNeeds:
    takes_tools: bool = True
    names_developer: bool = False
    # Arguments are printed as they are: the history repeats the very tokens that the model made, and their cached KV
    # is found. Other templates expect the parsed object, and of them some fail with anything else.
    arguments_as_text: bool = False
    arguments_as_object_only: bool = False
    calls_without_content: bool = False  # calls are read only where content is null
    names_thinking: bool = False  # as gpt-oss calls what others have as reasoning_content
    system_first: bool = True
    system_later: bool = True  # behind other messages
    users_in_a_row: bool = True


def template_needs(template: str, render: Callable[[list[dict[str, Any]]], str]) -> TemplateNeeds:
    """``render`` gives a conversation's text and may fail in any way."""

    def rendered(messages: list[dict[str, Any]]) -> str:
        try:
            return render(messages)
        except Exception:  # the model's program
            return ""

    def takes(*roles: str) -> bool:
        text = rendered([{"role": role, "content": f"probe-{i}"} for i, role in enumerate(roles)])
        return all(f"probe-{i}" in text for i in range(len(roles)))

    def shown(arguments: object, content: str | None) -> str:
        call = {"id": "probe0001", "type": "function", "function": {"name": _NAME, "arguments": arguments}}
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": "probe"},
            {"role": "assistant", "content": content, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "probe0001", "name": _NAME, "content": "probe"},
        ]
        return rendered(messages)

    plain = takes("user", "assistant", "user")
    parsed = {"probe": "value"}
    content = None if not any(_NAME in shown(arguments, "") for arguments in (_TEXT, parsed)) else ""
    text, from_object = shown(_TEXT, content), shown(parsed, content)
    return TemplateNeeds(
        takes_tools=not template or bool(re.search(r"\btools\b", template)),
        names_developer="developer" in template,
        arguments_as_text=_TEXT in text,
        arguments_as_object_only=_NAME in from_object and _NAME not in text,
        calls_without_content=content is None and (_NAME in text or _NAME in from_object),
        names_thinking=bool(re.search(r"\.thinking\b|\[['\"]thinking['\"]\]", template)),
        # Where not even a plain conversation is shown, nothing can be told.
        system_first=not plain or takes("system", "user"),
        system_later=not plain or takes("user", "assistant", "system", "user"),
        users_in_a_row=not plain or takes("user", "user"),
    )

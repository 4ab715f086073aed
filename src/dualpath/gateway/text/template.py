"""What a model's chat template expects of a conversation, found out by rendering one with a tool call in it.

Templates read the same message in different ways, and what they do not read is lost without a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_NAME, _OTHER = "probe_function", "other_function"
_ID, _OTHER_IDS = "probe0001", ("call_0123456789abcdef01234567", "c1")  # nine characters, and as others have them
_SAID = "probe-said"
_HELLO: list[dict[str, Any]] = [{"role": "user", "content": "probe"}]
_TEXT = '{"probe":"value"}'  # spaced as no serialiser spaces it


@dataclass(frozen=True, slots=True)
class TemplateNeeds:
    takes_tools: bool = True
    describes_tools: bool = False  # and fails without a description
    developer_first: bool = False
    developer_later: bool = False
    # Arguments are printed as they are: the history repeats the very tokens that the model made, and their cached KV
    # is found. Other templates expect the parsed object, and of them some fail with anything else.
    arguments_as_text: bool = False
    arguments_as_object_only: bool = False
    calls_without_content: bool = False  # calls are read only where content is null
    one_call: bool = False  # in a message: with more it fails, or shows the first
    content_apart: bool = False  # in a message of its own, or it is not shown beside calls
    short_call_ids: bool = False  # of nine characters: with others it fails
    names_thinking: bool = False  # as gpt-oss calls what others have as reasoning_content
    thinks_or_says: bool = False  # beside calls: with both it fails
    system_first: bool = True
    system_later: bool = True  # behind other messages
    users_in_a_row: bool = True
    users_after_results: bool = True  # of tools


def template_needs(template: str, render: Callable[[list[dict[str, Any]], Any], str]) -> TemplateNeeds:
    """``render`` gives a conversation's text, with tools or None, and may fail in any way."""

    def rendered(messages: list[dict[str, Any]], tools: Any = None) -> str:
        try:
            return render(messages, tools)
        except Exception:  # the model's program
            return ""

    def takes(*roles: str) -> bool:
        """Shown, and in this order: what is moved to the front changes all that has been stored."""
        text = rendered([{"role": role, "content": f"probe-{i}"} for i, role in enumerate(roles)])
        places = [text.find(f"probe-{i}") for i in range(len(roles))]
        return places[0] >= 0 and places == sorted(places)

    def called(
        arguments: object, content: str | None, *names: str, call_id: str = _ID, then: Any = (), **more: str
    ) -> str:
        calls = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}} for name in names
        ]
        results = [{"role": "tool", "tool_call_id": call_id, "name": name, "content": "probe"} for name in names]
        asked = {"role": "assistant", "content": content, "tool_calls": calls, **more}
        return rendered([*_HELLO, asked, *results, *then])

    def shown(arguments: object, content: str | None) -> str:
        return called(arguments, content, _NAME)

    plain = takes("user", "assistant", "user")
    parsed = {"probe": "value"}
    content = None if not any(_NAME in shown(arguments, "") for arguments in (_TEXT, parsed)) else ""
    text, from_object = shown(_TEXT, content), shown(parsed, content)
    given = _TEXT if _NAME in text else parsed
    takes_calls = _NAME in text or _NAME in from_object
    names_developer = "developer" in template
    names_thinking = bool(re.search(r"\.thinking\b|\[['\"]thinking['\"]\]", template))
    thinks = {"thinking": "probe-thought"} if names_thinking else {}
    said_and_called = called(given, _SAID, _NAME)
    says_beside = _SAID in said_and_called and _NAME in said_and_called
    return TemplateNeeds(
        takes_tools=not template or bool(re.search(r"\btools\b", template)),
        describes_tools=not rendered(_HELLO, [_tool()]) and bool(rendered(_HELLO, [_tool(description="")])),
        developer_first=names_developer and takes("developer", "user"),
        developer_later=names_developer
        and takes("system", "developer", "user")
        and takes("user", "assistant", "developer", "user"),
        one_call=takes_calls and _OTHER not in called(given, content, _NAME, _OTHER),
        content_apart=takes_calls and not says_beside and takes("user", "assistant", "assistant", "user"),
        short_call_ids=takes_calls and not all(called(given, content, _NAME, call_id=one) for one in _OTHER_IDS),
        thinks_or_says=bool(thinks) and says_beside and not called(given, _SAID, _NAME, **thinks),
        arguments_as_text=_TEXT in text,
        arguments_as_object_only=_NAME in from_object and _NAME not in text,
        calls_without_content=content is None and takes_calls,
        names_thinking=names_thinking,
        # Where not even a plain conversation is shown, nothing can be told.
        system_first=not plain or takes("system", "user"),
        system_later=not plain or takes("user", "assistant", "system", "user"),
        users_in_a_row=not plain or takes("user", "user"),
        users_after_results=not takes_calls or bool(called(given, content, _NAME, then=_HELLO)),
    )


def _tool(**more: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": _NAME, "parameters": {"type": "object", "properties": {}}, **more}}

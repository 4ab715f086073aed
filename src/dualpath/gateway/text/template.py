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
_SAID, _THOUGHT = "probe-said", "probe-thought"
_HELLO: list[dict[str, Any]] = [{"role": "user", "content": "probe"}]
_VALUE = "probed-value"
_PARSED = {"probe": _VALUE}
_TEXT = f'{{"probe":"{_VALUE}"}}'  # spaced as no serialiser spaces it
_NO_FORM = re.compile(rf"""\{{\s*(["'])probe\1\s*:\s*\1{_VALUE}\1\s*\}}""")  # JSON, or an object as Python prints it


@dataclass(frozen=True, slots=True)
class TemplateNeeds:
    takes_tools: bool = True
    lists_no_tools: bool = False  # an empty list, where there are none: with null it fails
    describes_tools: bool = False  # and fails without a description
    completes_tools: bool = False  # and fails without a schema that has properties
    one_type: bool = False  # in a schema: with a list of them it fails
    developer_first: bool = False
    developer_later: bool = False
    # Arguments are printed as they are: the history repeats the very tokens that the model made, and their cached KV
    # is found. Other templates expect the parsed object, and of them some fail with anything else.
    arguments_as_text: bool = False
    arguments_as_object_only: bool = False
    shows_calls: bool = True
    calls_without_content: bool = False  # calls are read only where content is null
    one_call: bool = False  # in a message: with more it fails, or shows the first
    content_apart: bool = False  # in a message of its own, or it is not shown beside calls
    short_call_ids: bool = False  # of nine characters: with others it fails
    names_thinking: bool = False  # as gpt-oss calls what others have as reasoning_content
    thinks_or_says: bool = False  # beside calls: with both it fails
    thinks_in_parts: bool = False  # reasoning is a part of content, and is not shown elsewhere
    thinks_at_calls: bool = False  # where content is apart, reasoning is shown with the call only
    # Line breaks that the template itself writes: around reasoning, and around content between reasoning and a call.
    thought_edges: tuple[str, str] = ("", "")
    said_edges: tuple[str, str] = ("", "")
    system_first: bool = True
    system_later: bool = True  # behind other messages
    users_in_a_row: bool = True
    users_after_results: bool = True  # of tools
    users_after_calls: bool = True  # that have no result
    assistants_in_a_row: bool = True
    empty_assistants: bool = True  # without content and calls


class _Probe:
    """Small conversations in this template. ``given`` and ``content``: what it shows of a call, and beside it."""

    def __init__(self, render: Callable[[list[dict[str, Any]], Any], str]) -> None:
        self._render = render
        self.no_tools: list[Any] | None = None
        if not self.rendered(_HELLO) and self.rendered(_HELLO, []):
            self.no_tools = []
        self.content: str | None = ""
        if not any(_NAME in self.called(_NAME, given=given) for given in (_TEXT, _PARSED)):
            self.content = None
        self.from_text, self.from_object = (self.called(_NAME, given=given) for given in (_TEXT, _PARSED))
        self.given = _TEXT if _NAME in self.from_text else _PARSED
        self.takes_calls = _NAME in self.from_text or _NAME in self.from_object

    def rendered(self, messages: list[dict[str, Any]], tools: Any = None) -> str:
        try:
            return self._render(messages, self.no_tools if tools is None else tools)
        except Exception:  # the model's program
            return ""

    def takes(self, *roles: str) -> bool:
        """Shown, and in this order: what is moved to the front changes all that has been stored."""
        text = self.rendered([{"role": role, "content": f"probe-{i}"} for i, role in enumerate(roles)])
        places = [text.find(f"probe-{i}") for i in range(len(roles))]
        return places[0] >= 0 and places == sorted(places)

    def called(
        self,
        *names: str,
        given: object = None,
        content: object = None,
        call_id: str = _ID,
        before: Any = (),
        between: Any = (),
        has_results: bool = True,
        then: Any = (),
        thoughts: tuple[str, ...] = (),
    ) -> str:
        """Calls of these, in one message. ``given`` and ``content``: the probe's own where there are none."""
        arguments, said = (given or self.given), (content or self.content)
        calls = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}} for name in names
        ]
        results = [{"role": "tool", "tool_call_id": call_id, "name": name, "content": "probe"} for name in names]
        asked = {"role": "assistant", "content": said, "tool_calls": calls, **dict.fromkeys(thoughts, _THOUGHT)}
        return self.rendered([*before, *_HELLO, *between, asked, *(results if has_results else ()), *then])

    def fails_on_tool(self, parameters: dict[str, Any]) -> bool:
        """With such parameters, and not with others."""
        taken, other = (self.rendered(_HELLO, [_tool(one, description="")]) for one in (None, parameters))
        return bool(taken) and not other


def template_needs(template: str, render: Callable[[list[dict[str, Any]], Any], str]) -> TemplateNeeds:
    """``render`` gives a conversation's text, with tools or None, and may fail in any way."""
    probe = _Probe(render)
    takes, called, rendered, takes_calls = probe.takes, probe.called, probe.rendered, probe.takes_calls
    text, from_object = probe.from_text, probe.from_object
    plain = takes("user", "assistant", "user")
    takes_tools = not template or bool(re.search(r"\btools\b", template))
    names_developer = "developer" in template
    names_thinking = bool(re.search(r"\.thinking\b|\[['\"]thinking['\"]\]", template))
    thinking = ("thinking",) if names_thinking else ()
    all_thoughts = ("reasoning_content", "reasoning", *thinking)
    said_and_called = called(_NAME, content=_SAID)
    says_beside = 0 <= said_and_called.find(_SAID) < said_and_called.find(_NAME)
    thought_in_parts = called(
        _NAME, content=[{"type": "thinking", "thinking": _THOUGHT}, {"type": "text", "text": _SAID}]
    )
    thought_beside = called(_NAME, content=_SAID, thoughts=all_thoughts)
    instructs = takes("system", "user") and takes("system", "user", "assistant", "user")
    instructed = called(_NAME, before=[{"role": "system", "content": _SAID}])
    assistants_in_a_row = takes("user", "assistant", "assistant", "user")
    content_apart = takes_calls and not says_beside and assistants_in_a_row
    said_before = {"role": "assistant", "content": _SAID, **dict.fromkeys(all_thoughts, _THOUGHT)}
    thinks_in_parts = (
        _THOUGHT not in thought_beside
        and 0 <= thought_in_parts.find(_THOUGHT) < thought_in_parts.find(_SAID)
        and not re.search(r"['\"]type['\"]", thought_in_parts)  # the parts as they stand
    )
    laid_out = thought_in_parts if thinks_in_parts else thought_beside
    return TemplateNeeds(
        takes_tools=takes_tools,
        lists_no_tools=probe.no_tools is not None,
        describes_tools=not rendered(_HELLO, [_tool()]) and bool(rendered(_HELLO, [_tool(description="")])),
        completes_tools=probe.fails_on_tool(_NO_PROPERTIES) or probe.fails_on_tool({}),
        one_type=probe.fails_on_tool(_TYPES),
        developer_first=names_developer and takes("developer", "user"),
        developer_later=names_developer
        and takes("system", "developer", "user")
        and takes("user", "assistant", "developer", "user"),
        one_call=takes_calls and _OTHER not in called(_NAME, _OTHER),
        content_apart=content_apart,
        short_call_ids=takes_calls and not all(called(_NAME, call_id=one) for one in _OTHER_IDS),
        thinks_or_says=names_thinking and says_beside and not called(_NAME, content=_SAID, thoughts=thinking),
        thinks_in_parts=thinks_in_parts,
        thinks_at_calls=content_apart
        and _THOUGHT in called(_NAME, thoughts=all_thoughts)
        and _THOUGHT not in called(_NAME, between=[said_before]),
        thought_edges=_edges(laid_out, _THOUGHT),
        said_edges=(
            _edges(laid_out, _SAID)[0] if 0 <= laid_out.find(_THOUGHT) < laid_out.find(_SAID) else "",
            _edges(said_and_called, _SAID)[1] if says_beside else "",
        ),
        # Where an object is shown in a form of the model's own, text would stand there in another.
        arguments_as_text=_TEXT in text and (_VALUE not in from_object or bool(_NO_FORM.search(from_object))),
        arguments_as_object_only=_VALUE in from_object and _VALUE not in text,
        shows_calls=not plain or takes_calls or not takes_tools,
        calls_without_content=probe.content is None and takes_calls,
        names_thinking=names_thinking,
        # Where not even a plain conversation is shown, nothing can be told.
        system_first=not plain
        or (instructs and (not takes_calls or 0 <= instructed.find(_SAID) < instructed.find(_NAME))),
        system_later=not plain or takes("user", "assistant", "system", "user"),
        users_in_a_row=not plain or takes("user", "user"),
        users_after_results=not takes_calls or bool(called(_NAME, then=_HELLO)),
        users_after_calls=not takes_calls or bool(called(_NAME, has_results=False, then=_HELLO)),
        assistants_in_a_row=not plain or assistants_in_a_row,
        empty_assistants=not plain or bool(rendered([*_HELLO, {"role": "assistant", "content": ""}, *_HELLO])),
    )


def _edges(text: str, part: str) -> tuple[str, str]:
    """The line breaks around a part of a text."""
    before, found, after = text.partition(part)
    if not found:
        return "", ""
    return before[len(before.rstrip("\n")) :], after[: len(after) - len(after.lstrip("\n"))]


_NO_PROPERTIES = {"type": "object"}
_TYPES = {"type": "object", "properties": {"probe": {"type": ["string", "null"], "description": ""}}}


def _tool(parameters: dict[str, Any] | None = None, **more: str) -> dict[str, Any]:
    """None: with a schema of nothing. An empty one is none."""
    schema = {**_NO_PROPERTIES, "properties": {}} if parameters is None else parameters
    return {"type": "function", "function": {"name": _NAME, **({"parameters": schema} if schema else {}), **more}}

"""What Anthropic's blocks become in the one conversation form: nothing is lost without a word."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dualpath.core.errors import InvalidRequestError
from dualpath.gateway.anthropic.bodies import MessagesBody
from dualpath.gateway.anthropic.conversation import chat_body
from dualpath.gateway.openai.bodies import ChatBody

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "eA=="}}
USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
CALL = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


def chat(*messages: dict[str, Any], **fields: Any) -> ChatBody:
    return chat_body(msgspec.convert({"messages": list(messages), "max_tokens": 1, **fields}, MessagesBody))


def user(*blocks: dict[str, Any]) -> list[dict[str, Any]]:
    return chat({"role": "user", "content": list(blocks)}).messages


def assistant(*blocks: dict[str, Any]) -> list[dict[str, Any]]:
    return chat({"role": "assistant", "content": list(blocks)}).messages


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("sunny", "sunny"),
        (None, ""),
        ([], ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
        ([IMAGE], "[image: not shown, this model takes text only]"),
        (
            [{"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "x"}]}],
            "t\ns\nx",
        ),
        ([{"type": "tool_reference", "tool_name": "f"}], "[tool_reference: not shown, this model takes text only]"),
        ({"type": "bash_result", "stdout": "é"}, '{"type": "bash_result", "stdout": "é"}'),
    ],
)
def test_results(content: object, text: str) -> None:
    block = {"type": "tool_result", "tool_use_id": "t1", "content": content}
    assert user(block) == [{"role": "tool", "tool_call_id": "t1", "content": text}]


@pytest.mark.parametrize(("content", "text"), [("gone", "Error: gone"), ("", "Error"), ("Error: gone", "Error: gone")])
def test_results_that_are_errors_say_so(content: str, text: str) -> None:
    (turn,) = user({"type": "tool_result", "tool_use_id": "t1", "content": content, "is_error": True})
    assert turn["content"] == text


def test_what_a_user_says_around_results_keeps_its_place() -> None:
    text, result = {"type": "text", "text": "x"}, {"type": "tool_result", "tool_use_id": "t1", "content": "r"}
    turns = user(text, result, text, text)
    assert [(turn["role"], turn["content"]) for turn in turns] == [("user", "x"), ("tool", "r"), ("user", "x\nx")]


def test_documents_are_shown_where_they_are_text_and_refused_where_not() -> None:
    document = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
    assert user(document) == [{"role": "user", "content": "T\nx"}]
    for block in (IMAGE, {"type": "document", "source": {"type": "base64", "data": "eA=="}}, {"type": "video"}, {}):
        with pytest.raises(InvalidRequestError, match=r"messages\.0\.content\.0\.type: this model takes text only"):
            user(block)


def test_an_assistants_blocks_are_one_message() -> None:
    thinking = {"type": "thinking", "thinking": "hm", "signature": "s"}
    turns = assistant(
        thinking, {"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "a"}, USE, {**USE, "id": "t2"}
    )
    assert turns == [
        {"role": "assistant", "content": "a", "reasoning_content": "hm", "tool_calls": [CALL, {**CALL, "id": "t2"}]}
    ]


def test_what_other_servers_left_in_an_answer_does_not_end_the_conversation() -> None:
    left: list[dict[str, Any]] = [
        {"type": "fallback", "from": {"model": "a"}, "to": {"model": "b"}},
        {"type": "mcp_tool_listing", "mcp_server_name": "m", "tools": []},
        {"type": "compaction", "content": None},
    ]
    summary = {"type": "compaction", "content": "So far: x. "}
    assert assistant(summary, *left, {"type": "text", "text": "y"}) == [
        {"role": "assistant", "content": "So far: x. y"}
    ]
    for block in ({"type": "compaction", "content": 5}, {"type": "spell"}):
        with pytest.raises(InvalidRequestError, match=r"messages\.0\.content\.0"):
            assistant(block)


def test_results_of_anthropics_own_tools_stay_in_the_conversation() -> None:
    use = {"type": "server_tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
    result = {"type": "web_search_tool_result", "tool_use_id": "t1", "content": {"type": "none"}}
    turns = assistant(use, result, {"type": "text", "text": "b"})
    assert [turn["role"] for turn in turns] == ["assistant", "tool", "assistant"]
    assert turns[0]["tool_calls"] == [CALL]


def test_an_answer_that_has_begun_is_continued() -> None:
    begun = chat({"role": "user", "content": "x"}, {"role": "assistant", "content": "I think"})
    assert (begun.continue_final_message, begun.add_generation_prompt) == (True, False)
    for content in ("", [USE]):
        called = chat({"role": "user", "content": "x"}, {"role": "assistant", "content": content})
        assert called.continue_final_message is None


def test_tools_that_are_not_served_are_left_out() -> None:
    tools = [{"name": "f", "input_schema": {}, "strict": True}, {"type": "bash_20250124", "name": "bash"}]
    body = chat({"role": "user", "content": "x"}, tools=tools, tool_choice={"type": "any"})
    assert body.tools == [{"type": "function", "function": {"name": "f", "parameters": {}, "strict": True}}]
    assert body.tool_choice == "required"
    none = chat({"role": "user", "content": "x"}, tools=tools[1:], tool_choice={"type": "auto"})
    assert (none.tools, none.tool_choice) == (None, None)
    named = chat({"role": "user", "content": "x"}, tools=tools, tool_choice={"type": "tool", "name": "f"})
    assert named.tool_choice == {"type": "function", "function": {"name": "f"}}


def test_thinking_effort_and_format() -> None:
    schema = {"type": "object"}
    body = chat(
        {"role": "user", "content": "x"},
        thinking={"type": "disabled"},
        output_config={"effort": "max", "format": {"type": "json_schema", "schema": schema}},
    )
    assert body.chat_template_kwargs == {"enable_thinking": False, "thinking": False}
    assert body.reasoning_effort == "high"
    assert body.response_format == {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert chat({"role": "user", "content": "x"}).chat_template_kwargs is None

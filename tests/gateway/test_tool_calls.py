"""Tool calls are found in any cutting of the text, and their markup is never content."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from dualpath.gateway.tool_calls import CallDelta, ToolCallParser

ARGUMENTS = '{"city": "Pa}ris \\"</tool_call>", "days": [1, {"a": 2}]}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'


def parse(pieces: Sequence[str], max_calls: int | None = None) -> tuple[str, list[tuple[str, str]]]:
    parser = ToolCallParser(max_calls=max_calls)
    out = [piece for text in pieces for piece in parser.push(text)] + parser.close()
    content, calls = "", {}
    for piece in out:
        if isinstance(piece, CallDelta):
            name, arguments = calls.get(piece.index, (piece.name, ""))
            assert (piece.call_id is None) == (piece.index in calls)
            calls[piece.index] = (name, arguments + piece.arguments)
        else:
            content += piece
    return content, list(calls.values())


def cuts(text: str, length: int) -> list[str]:
    return [text[i : i + length] for i in range(0, len(text), length)]


@pytest.mark.parametrize("length", [1, 2, 7, 1000])
def test_calls_between_content(length: int) -> None:
    other = '<tool_call>{"arguments": {"x": 1}, "name": "other"}</tool_call>'
    content, calls = parse(cuts(f"I will look. a < b\n{CALL}\n{other}\n", length))
    assert content == "I will look. a < b"
    assert calls == [("weather", ARGUMENTS), ("other", '{"x": 1}')]
    assert json.loads(ARGUMENTS)["days"][1] == {"a": 2}


@pytest.mark.parametrize("length", [1, 3, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\nnot json\n</tool_call> x",
        '<tool_call>{"nam',
        "a\n<tool",
        "a <tool_calls>",
        '<tool_call>{"a": 1}</tool_call>',
    ],
)
def test_what_is_no_call_is_content(text: str, length: int) -> None:
    assert parse(cuts(text, length)) == (text, [])


def test_arguments_are_streamed_as_they_come() -> None:
    parser = ToolCallParser()
    assert parser.push('<tool_call>{"name": "f", "arguments": ')[0:] == []
    (first, second) = parser.push('{"a": 1')
    assert isinstance(first, CallDelta)
    assert isinstance(second, CallDelta)
    assert (first.name, first.arguments, second.arguments) == ("f", "", '{"a": 1')
    (third,) = parser.push(', "b": 2}}</tool')
    assert isinstance(third, CallDelta)
    assert third.arguments == ', "b": 2}'
    assert parser.push("_call>") == []
    assert parser.close() == []


def test_a_call_without_an_end_tag_counts() -> None:
    assert parse(['<tool_call>{"name": "f", "arguments": {}}']) == ("", [("f", "{}")])
    assert parse(['<tool_call>{"name": "f"}']) == ("", [("f", "{}")])


def test_only_so_many_calls_as_allowed() -> None:
    assert parse([CALL, "\n", CALL.replace("weather", "other")], max_calls=1) == ("", [("weather", ARGUMENTS)])

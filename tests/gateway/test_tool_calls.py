"""Tool calls are found in any cutting of the text, and their markup is never content."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from dualpath.gateway.tool_calls import MAX_HEADER_CHARS, CallDelta, ToolCallParser

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


LONG_NAME = "f" * 3000
ODD_CALLS = [  # (text, content, calls)
    (f'<tool_call>{{"name": "{LONG_NAME}", "arguments": {{"a": 1}}}}</tool_call>', "", [(LONG_NAME, '{"a": 1}')]),
    (f'<tool_call>{" " * 3000}{{"name": "f", "arguments": {{}}}}</tool_call>!', "!", [("f", "{}")]),
    ('<tool_call>{"name": "a\\x", "arguments": {}}</tool_call>', None, []),
    ('<tool_call>{"name": "a\\u12", "arguments": {}}', None, []),
    ('<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>', "", [("?", "{}")]),
    ('<tool_call>{"arguments": {"a": "\\ud800"}, "name": "f"}</tool_call>', "", [("f", '{"a": "?"}')]),
    (f'<tool_call>{{"name": "f", "x": {"[" * 30_000}</tool_call>', None, []),
    (f"<tool_call>{'x' * 3000}", None, []),
]


@pytest.mark.parametrize("length", [1, 1000, 100_000])
@pytest.mark.parametrize(("text", "content", "calls"), ODD_CALLS, ids=range(len(ODD_CALLS)))
def test_odd_headers(text: str, content: str | None, calls: list[tuple[str, str]], length: int) -> None:
    """None: the whole text is content."""
    got_content, got_calls = parse(cuts(text, length))
    assert (got_content, got_calls) == (text if content is None else content, calls)
    json.dumps(got_calls).encode()
    "".join(text for call in got_calls for text in call).encode()


@pytest.mark.parametrize("start", ["", '{"name": "', "{" * 20, " "])
def test_a_token_of_a_long_header_costs_no_more_than_one_of_a_short_one(start: str) -> None:
    """What a push looks through is the buffer."""
    parser, longest = ToolCallParser(), 0
    parser.push(f"<tool_call>{start}")
    for _ in range(5000):
        assert parser.push("{ab,") == []
        longest = max(longest, len(parser._buffer))
    assert longest <= MAX_HEADER_CHARS + 4
    assert parser.close() == [f"<tool_call>{start}{'{ab,' * 5000}"]


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

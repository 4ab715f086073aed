"""Calls as Gemma 4 writes them: ``<|tool_call>call:read{path:<|"|>a.py<|"|>,lines:[1,2]}<tool_call|>``.

Keys have no quotes, strings have marks of their own around them, in which nothing is escaped.
"""

from __future__ import annotations

import json

from dualpath.gateway.text.calls.grammar import CallGrammar, take_mark
from dualpath.gateway.text.calls.sink import CallSink
from dualpath.gateway.text.json_text import string_value, value_end
from dualpath.gateway.text.reader import Need, Reader

QUOTE = '<|"|>'
CALL = "call:"
MAX_DEPTH = 64
_NO_NAME = frozenset("{}[]()<>\"' \t\r\n")


class GemmaCalls(CallGrammar):
    openers = ("<|tool_call>",)
    closers = ("<tool_call|>",)
    inner = (QUOTE,)

    def read(self, reader: Reader, i: int, opener: str, sink: CallSink) -> Need[bool]:
        i = yield from reader.skip_blank(i)
        if not (yield from reader.sees(i, CALL)):
            return False
        start = i = i + len(CALL)
        while (char := (yield from reader.peek(i))) and char not in _NO_NAME:
            i += 1
        name = reader.text(start, i)
        found = (yield from self._value(reader, i, 0)) if name and char == "{" else None
        if found is None:
            return False
        arguments, end = found
        reader.take(end)
        sink.whole(name, arguments)
        yield from take_mark(reader, *self.closers)
        return True

    def _value(self, reader: Reader, i: int, depth: int) -> Need[tuple[str, int] | None]:
        """The value at ``i`` as JSON, and its end; None where it has none."""
        if depth > MAX_DEPTH:
            return None
        first = yield from reader.peek(i)
        if first == "{":
            return (yield from self._members(reader, i + 1, "}", depth))
        if first == "[":
            return (yield from self._members(reader, i + 1, "]", depth))
        string = yield from self._string(reader, i)
        if string is not None:
            return json.dumps(string[0], ensure_ascii=False), string[1]
        start = i
        while (char := (yield from reader.peek(i))) and char not in ",}]":
            if (yield from reader.sees(i, *self.markers)):
                return None
            i += 1
        text = reader.text(start, i).strip()
        return (_scalar(text), i) if char and text else None

    def _members(self, reader: Reader, i: int, end: str, depth: int) -> Need[tuple[str, int] | None]:
        """What is in an object, or an array, up to its end."""
        parts: list[str] = []
        while True:
            i = yield from reader.skip_blank(i)
            if (yield from reader.peek(i)) == end:
                body = ", ".join(parts)
                return (f"{{{body}}}" if end == "}" else f"[{body}]"), i + 1
            if parts:
                if (yield from reader.peek(i)) != ",":
                    return None
                i = yield from reader.skip_blank(i + 1)
            key = ""
            if end == "}":
                named = yield from self._key(reader, i)
                if named is None:
                    return None
                key, i = f"{json.dumps(named[0], ensure_ascii=False)}: ", (yield from reader.skip_blank(named[1]))
            value = yield from self._value(reader, i, depth + 1)
            if value is None:
                return None
            parts.append(key + value[0])
            i = value[1]

    def _key(self, reader: Reader, i: int) -> Need[tuple[str, int] | None]:
        """A key, with or without quotes, and the place behind its colon."""
        string = yield from self._string(reader, i)
        if string is not None:
            i = yield from reader.skip_blank(string[1])
            return (string[0], i + 1) if (yield from reader.peek(i)) == ":" else None
        found = yield from reader.find(i, ":", "{", "}", *self.markers)
        if found is None or found[1] != ":":
            return None
        key = reader.text(i, found[0]).strip()
        return (key, found[0] + 1) if key else None

    def _string(self, reader: Reader, i: int) -> Need[tuple[str, int] | None]:
        """A string in the form's own marks, or one of JSON, and its end."""
        if (yield from reader.sees(i, QUOTE)):
            start = i + len(QUOTE)
            found = yield from reader.find(start, QUOTE)
            return None if found is None else (reader.text(start, found[0]), found[0] + len(QUOTE))
        if (yield from reader.peek(i)) != '"':
            return None
        end = yield from value_end(reader, i, self.markers)
        text = None if end is None else string_value(reader.text(i, end))
        return None if end is None or text is None else (text, end)


def _scalar(text: str) -> str:
    """A number, true, false or null as it stands; anything else is a string without its quotes."""
    try:
        json.loads(text, parse_constant=lambda _: 1 / 0)
    except (ValueError, ZeroDivisionError):
        return json.dumps(text, ensure_ascii=False)
    return text

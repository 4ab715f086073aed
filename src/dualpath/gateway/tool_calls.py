"""Tool calls out of a text stream: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` (Hermes, Qwen).

Markup is never passed on as content, and arguments are passed on as they are written, character for character: the
next turn's prompt then repeats the tokens that the model made. What looks like a call but cannot be read is content.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from enum import Enum

from dualpath.gateway.errors import encodable

OPEN, CLOSE = "<tool_call>", "</tool_call>"
# A longer header is read at the closing tag only, so that its beginning is not looked at again with every token.
MAX_HEADER_CHARS = 1024
# The line break before a call belongs to the markup: chat templates write one there.
_OPENINGS = ("\n" + OPEN, OPEN)
_HEADER = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of call number ``index``. The first one has its id and name."""

    index: int
    call_id: str | None
    name: str | None
    arguments: str


Piece = str | CallDelta


class _Mode(Enum):
    CONTENT = "content"
    HEADER = "header"  # after the opening tag, before the arguments
    ARGUMENTS = "arguments"
    TRAILER = "trailer"  # after the arguments, before the closing tag


class ToolCallParser:
    """Feed text with ``push``, end with ``close``; both return content and pieces of calls in order."""

    def __init__(self, *, max_calls: int | None = None) -> None:
        self.num_calls = 0
        self._max_calls = max_calls
        self._mode = _Mode.CONTENT
        self._buffer = ""
        self._long: list[str] = []  # what of a long header has been looked through, before the buffer
        self._out: list[Piece] = []
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def push(self, text: str) -> list[Piece]:
        self._buffer += text
        while self._advance():
            pass
        return self._take()

    def close(self) -> list[Piece]:
        if self._mode is _Mode.CONTENT:
            self._content(self._buffer)
        elif self._mode is _Mode.HEADER:
            body = self._take_long() + self._buffer
            if not self._whole_call(body):
                self._content(OPEN + body)
        self._buffer = ""
        return self._take()

    def _take(self) -> list[Piece]:
        out, self._out = self._out, []
        return out

    def _advance(self) -> bool:
        """One step of the current mode; False when it needs more text."""
        if self._mode is _Mode.CONTENT:
            return self._in_content()
        if self._mode is _Mode.HEADER:
            return self._in_header()
        if self._mode is _Mode.ARGUMENTS:
            return self._in_arguments()
        return self._in_trailer()

    def _in_content(self) -> bool:
        before, found, after = self._buffer.partition(OPEN)
        if found:
            self._content(before.removesuffix("\n"))
            self._buffer, self._mode = after, _Mode.HEADER
            return True
        num_held = max(_num_overlapping(self._buffer, opening) for opening in _OPENINGS)
        cut = len(self._buffer) - num_held
        self._content(self._buffer[:cut])
        self._buffer = self._buffer[cut:]
        return False

    def _in_header(self) -> bool:
        header = None if self._long else _HEADER.match(self._buffer, 0, MAX_HEADER_CHARS)
        name = _name(header.group(1)) if header else None
        if header and name is not None:
            self._call(name, "")
            self._buffer, self._mode = self._buffer[header.end() :], _Mode.ARGUMENTS
            return True
        body, found, after = self._buffer.partition(CLOSE)
        if not found:
            if len(self._buffer) >= MAX_HEADER_CHARS:
                self._long.append(self._buffer[: 1 - len(CLOSE)])
                self._buffer = self._buffer[1 - len(CLOSE) :]
            return False
        body = self._take_long() + body
        if not self._whole_call(body):
            self._content(OPEN + body + CLOSE)
        self._buffer, self._mode = after, _Mode.CONTENT
        return True

    def _take_long(self) -> str:
        text = "".join(self._long)
        self._long.clear()
        return text

    def _in_arguments(self) -> bool:
        end = self._scan_object(self._buffer)
        if end:
            self._arguments(self._buffer[:end])
        self._buffer = self._buffer[end:]
        if self._depth == 0 and end:
            self._mode = _Mode.TRAILER
            return True
        return False

    def _in_trailer(self) -> bool:
        _, found, after = self._buffer.partition(CLOSE)
        if found:
            self._buffer, self._mode = after, _Mode.CONTENT
            return True
        self._buffer = self._buffer[-len(CLOSE) :]
        return False

    def _scan_object(self, text: str) -> int:
        """How far ``text`` belongs to the JSON object being read; ``_depth`` is 0 afterwards if it ends there."""
        for i, char in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return i + 1
        return len(text)

    def _whole_call(self, text: str) -> bool:
        """A call whose members come in another order or whose arguments are not an object."""
        try:
            call = json.loads(text, strict=False)
            if not isinstance(call, dict) or not isinstance(call.get("name"), str):
                return False
            arguments = call.get("arguments", call.get("parameters", {}))
            written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        except (ValueError, RecursionError):
            return False
        self._call(encodable(call["name"]), encodable(written))
        return True

    def _content(self, text: str) -> None:
        # Blank text between and after calls is layout.
        if text and not (self.num_calls and text.isspace()):
            self._out.append(text)

    def _call(self, name: str, arguments: str) -> None:
        self.num_calls += 1
        if not self._muted():
            self._out.append(CallDelta(self.num_calls - 1, f"call_{uuid.uuid4().hex[:24]}", name, arguments))

    def _arguments(self, text: str) -> None:
        if not self._muted():
            self._out.append(CallDelta(self.num_calls - 1, None, None, text))

    def _muted(self) -> bool:
        return self._max_calls is not None and self.num_calls > self._max_calls


def _name(literal: str) -> str | None:
    """What a JSON string says; None where its escapes are none."""
    try:
        return encodable(json.loads(literal, strict=False))
    except ValueError:
        return None


def _num_overlapping(text: str, pattern: str) -> int:
    """The longest end of ``text`` that is a proper beginning of ``pattern``, in characters."""
    for length in range(min(len(text), len(pattern) - 1), 0, -1):
        if text.endswith(pattern[:length]):
            return length
    return 0

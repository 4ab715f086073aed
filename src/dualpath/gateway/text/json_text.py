"""JSON as it arrives: where a value ends, found by its brackets and quotes, before the value is complete."""

from __future__ import annotations

import json
from collections.abc import Callable

from dualpath.gateway.text.reader import Need, Reader

MAX_PIECE_CHARS = 4096
_SCALAR = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class _Nesting:
    """How deep in brackets a place is, and whether in a string."""

    def __init__(self) -> None:
        self.depth = 0
        self.in_string = False
        self._escaped = False

    def ends_with(self, char: str) -> bool:
        """Whether the value that began with the first character ends with this one."""
        if self.in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self.in_string = False
        elif char == '"':
            self.in_string = True
        elif char in "{[":
            self.depth += 1
        elif char in "}]":
            self.depth -= 1
        return self.depth <= 0 and not self.in_string


def value_end(reader: Reader, i: int, markers: tuple[str, ...]) -> Need[int | None]:
    """Where the value that begins at ``i`` ends; None if none begins there, or the text or a marker comes before."""
    first = yield from reader.peek(i)
    if first not in ('"', "{", "["):
        end = i
        while (char := (yield from reader.peek(end))) and char in _SCALAR:
            end += 1
        return end if end > i else None
    nesting = _Nesting()
    while char := (yield from reader.peek(i)):
        if not nesting.in_string and (yield from reader.sees(i, *markers)):
            return None
        i += 1
        if nesting.ends_with(char):
            return i
    return None


def take_object(reader: Reader, markers: tuple[str, ...], put: Callable[[str], None]) -> Need[None]:
    """Take the object or array that begins the text, and ``put`` its text as it comes, character for character. It
    ends where the text does, or at a marker outside of a string, even if that leaves it incomplete."""
    nesting, i = _Nesting(), 0
    while True:
        if i >= min(reader.num_held, MAX_PIECE_CHARS):
            put(reader.take(i))
            i = 0
        char = yield from reader.peek(i)
        if not char or (not nesting.in_string and (yield from reader.sees(i, *markers))):
            break
        i += 1
        if nesting.ends_with(char):
            break
    put(reader.take(i))


def string_value(literal: str) -> str | None:
    """What a JSON string says; None where it is none."""
    try:
        value = json.loads(literal, strict=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, str) else None

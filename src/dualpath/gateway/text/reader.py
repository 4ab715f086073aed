"""Text that arrives in pieces, for grammars that are generators: they yield when they need more of it.

Nothing is gone until it is taken, so a grammar that fails has changed nothing. Places are counted from what was taken
last; what a grammar reads therefore depends on the text, never on how it was cut.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Need = Generator[None, None, T]  # yields when more text is needed

# What may be looked at before it is taken: no state holds an answer back for ever.
MAX_HELD_CHARS = 1 << 18


class TooLongError(Exception):
    """A grammar wants to hold back more than MAX_HELD_CHARS."""


class Reader:
    def __init__(self) -> None:
        self.ended = False
        self._text = ""
        self._start = 0

    @property
    def num_held(self) -> int:
        return len(self._text) - self._start

    def feed(self, text: str) -> None:
        self._text = self._text[self._start :] + text
        self._start = 0

    def text(self, start: int, end: int) -> str:
        return self._text[self._start + start : self._start + end]

    def take(self, num_chars: int) -> str:
        text = self.text(0, num_chars)
        self._start += len(text)
        return text

    def peek(self, i: int) -> Need[str]:
        """The character at ``i``; nothing where the text ends before."""
        if i >= MAX_HELD_CHARS:
            raise TooLongError
        while i >= self.num_held:
            if self.ended:
                return ""
            yield
        return self._text[self._start + i]

    def sees(self, i: int, *literals: str) -> Need[str]:
        """Which of ``literals`` stands at ``i``; nothing if none does."""
        for literal in literals:
            for k, char in enumerate(literal):
                if (yield from self.peek(i + k)) != char:
                    break
            else:
                return literal
        return ""

    def skip_blank(self, i: int, blank: str = " \t\r\n") -> Need[int]:
        """The first place from ``i`` on that is not blank."""
        while True:
            char = yield from self.peek(i)
            if not char or char not in blank:
                return i
            i += 1

    def find(self, i: int, *literals: str) -> Need[tuple[int, str] | None]:
        """The first of ``literals`` from ``i`` on, none of which may hold another; None where the text ends before."""
        longest, start = max(map(len, literals)), i
        while True:
            found = [(at, literal) for literal in literals if (at := self.index(literal, start)) >= 0]
            if found and min(found)[0] < MAX_HELD_CHARS:
                return min(found)
            if self.num_held >= MAX_HELD_CHARS + longest:
                raise TooLongError
            if self.ended:
                return None
            start = max(i, self.num_held - longest + 1)
            yield

    def index(self, literal: str, i: int = 0) -> int:
        """Where ``literal`` first stands from ``i`` on, in what has come; -1: nowhere."""
        at = self._text.find(literal, self._start + i)
        return at - self._start if at >= 0 else -1

    def num_partial(self, literals: Sequence[str]) -> int:
        """The longest end of what has come that may become one of ``literals``, in characters."""
        end = self.text(max(0, self.num_held - max(map(len, literals), default=0)), self.num_held)
        return max((_num_overlapping(end, literal) for literal in literals), default=0)


def _num_overlapping(text: str, pattern: str) -> int:
    """The longest end of ``text`` that is a proper beginning of ``pattern``, in characters."""
    start = text.find(pattern[0], max(0, len(text) - len(pattern) + 1))
    while start >= 0:
        if pattern.startswith(text[start:]):
            return len(text) - start
        start = text.find(pattern[0], start + 1)
    return 0

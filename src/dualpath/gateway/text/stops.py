"""Stop strings end an answer, and no part of one is ever shown: text that may be the start of one is held back."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache


class _Automaton:
    """How much of one stop string the text ends with (Knuth-Morris-Pratt): O(1) amortised per character."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.matched = 0
        self._fallback = _fallback(pattern)

    def advance(self, char: str) -> bool:
        """True when the text now ends with the whole pattern; nothing may follow then."""
        while self.matched and char != self.pattern[self.matched]:
            self.matched = self._fallback[self.matched - 1]
        self.matched += char == self.pattern[self.matched]
        return self.matched == len(self.pattern)


@lru_cache(maxsize=256)
def _fallback(pattern: str) -> array[int]:
    """For each beginning of the pattern, how long the longest shorter beginning is that it ends with.

    Kept, as all choices of a request have the same stop strings, and there may be many of both.
    """
    out = array("H", [0]) * len(pattern)
    length = 0
    for i in range(1, len(pattern)):
        while length and pattern[i] != pattern[length]:
            length = out[length - 1]
        length += pattern[i] == pattern[length]
        out[i] = length
    return out


class StopMatcher:
    """Fed with text as it appears; the first stop string to be complete wins, the longest if several end together."""

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        self._automata = [_Automaton(stop) for stop in sorted(stops, key=len, reverse=True)]
        self._first_chars = {stop[0] for stop in stops}
        self._include_stop = include_stop
        self._held = ""
        self.matched: str | None = None

    @property
    def holding(self) -> bool:
        return bool(self._held)

    def push(self, text: str) -> str:
        """The text that may be shown. Once ``matched`` is set it is the last one."""
        if not self._held and self._first_chars.isdisjoint(text):
            return text
        pending = self._held + text
        for position, char in enumerate(text, start=len(self._held) + 1):
            if self._advance(char):
                self._held = ""
                assert self.matched is not None
                return pending[: position if self._include_stop else position - len(self.matched)]
        num_held = max(automaton.matched for automaton in self._automata)
        cut = len(pending) - num_held
        self._held = pending[cut:]
        return pending[:cut]

    def _advance(self, char: str) -> bool:
        for automaton in self._automata:
            if automaton.advance(char) and self.matched is None:
                self.matched = automaton.pattern
        return self.matched is not None

    def flush(self) -> str:
        """What was held back in vain: no text will follow."""
        held, self._held = self._held, ""
        return held

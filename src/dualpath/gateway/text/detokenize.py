"""Token ids become text one at a time, never with half a character in it, at a cost that does not grow with the text.

A token's text depends on its neighbours (spaces, multi-byte characters), so a short window of tokens is decoded: those
already shown (``prefix``) and the new ones; the difference is the new text. While the window ends in U+FFFD a
character may still be incomplete, and its text is held back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

REPLACEMENT = "\ufffd"
# A character has at most four bytes and a token at least one, so a tail that is still broken after this many tokens
# (with room for tokens without text) is broken for good: its oldest token is shown as it is.
MAX_HELD_TOKENS = 8
# Tokens of the prompt that the first generated token is decoded after: some tokenizers drop a leading space otherwise.
NUM_CONTEXT_TOKENS = 5

Decode = Callable[[Sequence[int]], str]


class ByteLevelDecode:
    """Of a tokenizer whose texts' bytes are those of the tokens one after the other: a whole character stays so."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self.whole: Callable[[int], str] = lru_cache(maxsize=1 << 18)(self._whole)

    def __call__(self, token_ids: Sequence[int]) -> str:
        return self._decode(token_ids)

    def _whole(self, token_id: int) -> str:
        """The token's text wherever it comes after whole characters; empty where only its neighbours tell."""
        text = self._decode([token_id])
        return "" if REPLACEMENT in text else text


class IncrementalDetokenizer:
    def __init__(self, decode: Decode, context_ids: Sequence[int] = ()) -> None:
        self._decode = decode
        self._whole = decode.whole if isinstance(decode, ByteLevelDecode) else None
        self._window = list(context_ids[-NUM_CONTEXT_TOKENS:])
        self._num_shown = len(self._window)  # of the window's tokens
        self._shown_text = decode(self._window) if self._window else ""

    @property
    def holding(self) -> bool:
        """Whether some token's text has not been returned yet."""
        return len(self._window) > self._num_shown

    def push(self, token_id: int) -> str:
        """The text that is certain now; may be empty."""
        if self._whole is not None and len(self._window) == self._num_shown and (text := self._whole(token_id)):
            self._window, self._num_shown, self._shown_text = [token_id], 1, text
            return text
        self._window.append(token_id)
        text = self._decode(self._window)
        if not text.endswith(REPLACEMENT):
            return self._show(text, len(self._window))
        if len(self._window) - self._num_shown > MAX_HELD_TOKENS:
            end = self._num_shown + 1
            return self._show(self._decode(self._window[:end]), end)
        return ""

    def flush(self) -> str:
        """What is left, broken characters included: no token will follow."""
        if not self.holding:
            return ""
        return self._show(self._decode(self._window), len(self._window))

    def _show(self, text: str, end: int) -> str:
        """Return the text of tokens up to ``end`` and let the window begin at the tokens shown now."""
        new_text = text[len(self._shown_text) :]
        if not new_text and end == len(self._window):
            # Nothing to see (a skipped special token): keep the context, or the next token would lose it.
            if end > 4 * MAX_HELD_TOKENS:
                del self._window[:-NUM_CONTEXT_TOKENS]
                self._shown_text = self._decode(self._window)
            self._num_shown = len(self._window)
            return ""
        del self._window[: self._num_shown]
        self._num_shown = end - self._num_shown
        self._shown_text = self._decode(self._window[: self._num_shown])
        return new_text

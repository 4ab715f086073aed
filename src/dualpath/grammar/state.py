"""Where an output stands in its grammar, and the mask of the tokens that may come next: a function of its tokens."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from dualpath.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

MASK_BITS = 32
_PICTURE = re.compile(r"<state>|\n\s*\d+ \| ")
_MAX_KEPT = 64  # compiled grammars: agents send the same ones again and again


class GrammarState:
    """One output's. ``push`` may be called on any thread but while ``Grammars.advance`` runs."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self.matcher = matcher
        # Bit t % 32 of word t // 32: whether token t may come next.
        self.mask = np.zeros(-(-vocab_size // MASK_BITS), dtype=np.int32)
        self.error: str | None = None  # why it cannot go on, once ``advance`` has found out
        self._pending: list[int] = []
        self._is_current = False  # the mask

    def push(self, token_id: int) -> None:
        self._pending.append(token_id)
        self._is_current = False

    def catch_up(self) -> bool:
        """Take the pending tokens; whether the mask is out of date."""
        pending, self._pending = self._pending, []
        if pending and self.error is None and not self.matcher.consume_tokens(pending):
            self.error = one_line(self.matcher.get_error())
        was_current, self._is_current = self._is_current, True
        return self.error is None and not was_current

    def check(self) -> None:
        if self.matcher.is_error():
            self.error = one_line(self.matcher.get_error())


class Grammars:
    """Of one model. Thread-safe."""

    def __init__(self, load: Callable[[], LLTokenizer]) -> None:
        """``load`` may raise InvalidRequestError: grammars cannot be had for this model."""
        self._load = load
        self._lock = Lock()
        self._tokenizer: LLTokenizer | None = None
        self._executor: LLExecutor | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def warm(self) -> None:
        """Load the tokenizer now: it takes a second in which the interpreter does nothing else. Failures come later."""
        with suppress(InvalidRequestError), self._lock:
            self._loaded()

    def is_special(self, token_id: int) -> bool:
        """Whether grammars name the token by its id, as its text is not the same thing."""
        with self._lock:
            return self._loaded().is_special_token(token_id)

    def state(self, grammar: str, tokens: Sequence[int] = ()) -> GrammarState:
        """Behind ``tokens``, the output so far, its mask made. Raises InvalidRequestError for what is no grammar."""
        matcher = self._matcher(grammar)
        with self._lock:
            state = GrammarState(matcher.deep_copy(), self._loaded().vocab_size)
        for token_id in tokens:
            state.push(token_id)
        self.advance([state])
        if state.error is not None:
            raise InvalidRequestError(f"the grammar does not have the output so far: {state.error}")
        return state

    def check(self, grammar: str) -> None:
        """Raises InvalidRequestError for what is no grammar."""
        self._matcher(grammar)

    def advance(self, states: Sequence[GrammarState]) -> None:
        """Bring all masks up to date. Blocks, but not the interpreter."""
        late = [state for state in states if state.catch_up()]
        if len(late) == 1:
            mask = late[0].mask
            late[0].matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        elif late:
            masks = np.zeros((len(late), len(late[0].mask)), dtype=np.int32)
            jobs = [(state.matcher, row) for row, state in enumerate(late)]
            self._threads().unsafe_compute_mask_ptr(jobs, masks.ctypes.data, masks[0].nbytes, len(late))
            for state, mask in zip(late, masks, strict=True):
                state.mask = mask
        for state in late:
            state.check()

    def _matcher(self, grammar: str) -> LLMatcher:
        """At the beginning; to be copied, not used."""
        with self._lock:
            tokenizer, matcher = self._loaded(), self._compiled.get(grammar)
        if matcher is None:
            from llguidance import LLMatcher  # grammars only where it is installed

            matcher = LLMatcher(tokenizer, grammar, log_level=0)  # some take a second: nobody waits for it but us
            if matcher.is_error():
                raise InvalidRequestError(f"the grammar cannot be used: {one_line(matcher.get_error())}")
        with self._lock:
            self._compiled[grammar] = matcher
            self._compiled.move_to_end(grammar)
            if len(self._compiled) > _MAX_KEPT:
                self._compiled.popitem(last=False)
        return matcher

    def _loaded(self) -> LLTokenizer:
        if self._tokenizer is None:
            self._tokenizer = self._load()
        return self._tokenizer

    def _threads(self) -> LLExecutor:
        if self._executor is None:
            from llguidance import LLExecutor

            self._executor = LLExecutor()
        return self._executor


def one_line(text: str, max_chars: int = 300) -> str:
    """What llguidance says, without its states and pictures."""
    told = " ".join(_PICTURE.split(text)[0].split())
    return told if len(told) <= max_chars else told[:max_chars] + "..."

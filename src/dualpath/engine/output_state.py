"""A request's state for choosing its next token: counts, place in a grammar, bans. Made of its tokens, anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dualpath.core.request import SamplingParams
from dualpath.grammar.state import GrammarState

_FIRST_SIZE = 64


def is_shaped(params: SamplingParams) -> bool:
    """Whether logits are changed before a token is drawn."""
    return penalises(params) or bool(
        params.grammar or params.min_tokens or params.logit_bias or params.allowed_token_ids or params.bad_words
    )


def penalises(params: SamplingParams) -> bool:
    return bool(params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1)


class TokenCounts:
    """Distinct tokens, and how often each was generated."""

    def __init__(self, prompt_token_ids: Sequence[int]) -> None:
        self._index = {token_id: i for i, token_id in enumerate(dict.fromkeys(prompt_token_ids))}
        size = max(_FIRST_SIZE, 2 * len(self._index))
        self._ids, self._counts = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.float32)
        self._ids[: len(self._index)] = list(self._index)

    def add(self, token_id: int) -> None:
        i = self._index.setdefault(token_id, len(self._index))
        if i == len(self._ids):
            self._ids, self._counts = (np.concatenate([old, np.zeros_like(old)]) for old in (self._ids, self._counts))
        self._ids[i] = token_id
        self._counts[i] += 1

    def __len__(self) -> int:
        return len(self._index)

    @property
    def ids(self) -> np.ndarray:
        return self._ids[: len(self._index)]

    @property
    def counts(self) -> np.ndarray:
        return self._counts[: len(self._index)]


class OutputState:
    """Of a request whose logits are shaped. One thread at a time."""

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        output: Sequence[int],
        eos_token_ids: Sequence[int],
        grammar: GrammarState | None = None,
    ) -> None:
        """``output``: the tokens generated so far; ``grammar`` stands behind them."""
        self.params, self.grammar = params, grammar
        self.counts: TokenCounts | None = None
        if penalises(params):
            self.counts = TokenCounts(prompt_token_ids if params.repetition_penalty != 1 else ())
        ends_by_eos = bool(params.grammar) or not params.ignore_eos  # as finish_reason has it
        self._ends = (*params.stop_token_ids, *(eos_token_ids if ends_by_eos else ()))
        self.allowed = np.array(params.allowed_token_ids or (), dtype=np.int64)
        self._output: list[int] = []
        for token_id in output:
            self._add(token_id)

    @property
    def shapes_next(self) -> bool:
        """Whether the next token's logits are changed."""
        params = self.params
        later = params.grammar or params.logit_bias or params.allowed_token_ids or params.bad_words
        return bool(later or self.counts is not None or len(self._output) < params.min_tokens)

    @property
    def error(self) -> str | None:
        """Why no token can follow."""
        return None if self.grammar is None else self.grammar.error

    def take(self, token_id: int) -> None:
        self._add(token_id)
        if self.grammar is not None:
            self.grammar.push(token_id)

    def banned(self) -> list[int]:
        """Tokens that must not come next: ends that are too early, and last parts of bad words."""
        out = list(self._ends) if len(self._output) < self.params.min_tokens else []
        for *first, last in self.params.bad_words:
            if not first or self._output[-len(first) :] == first:
                out.append(last)
        return out

    def _add(self, token_id: int) -> None:
        self._output.append(token_id)
        if self.counts is not None:
            self.counts.add(token_id)

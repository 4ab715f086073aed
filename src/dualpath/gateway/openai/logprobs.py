"""Log probabilities in OpenAI's two forms, four parallel lists and one object per token, and a prompt's in vLLM's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dualpath.core.request import TokenEvent
from dualpath.gateway.openai.shapes import (
    ChatLogprobs,
    ChosenLogprob,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
)
from dualpath.gateway.text.tokenizer import Tokenizer

MIN_LOGPROB = -9999.0  # JSON has no infinity


class LogprobWriter:
    """Renders tokens of one choice in order; the text offset goes on from call to call."""

    def __init__(
        self, tokenizer: Tokenizer, num_top: int, *, tokens_as_ids: bool = False, text_offset: int = 0
    ) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._tokens_as_ids = tokens_as_ids
        self._text_offset = text_offset

    def completion(self, tokens: Sequence[TokenEvent]) -> CompletionLogprobs:
        """A token without a log probability is a prompt's first: nothing came before it."""
        out = CompletionLogprobs([], [], [], [])
        for event in tokens:
            text = self._name(event.token_id)
            out.tokens.append(text)
            out.token_logprobs.append(None if event.logprob is None else finite(event.logprob))
            out.top_logprobs.append(None if event.logprob is None else self._top_by_text(event, text))
            out.text_offset.append(self._text_offset)
            self._text_offset += len(self._tokenizer.token_text(event.token_id))
        return out

    def _top_by_text(self, event: TokenEvent, text: str) -> dict[str, float]:
        """Of tokens with the same text, as parts of characters have it, the most likely counts."""
        top: dict[str, float] = {}
        for token_id, value in self._top(event):
            top.setdefault(self._name(token_id), finite(value))
        top.setdefault(text, finite(event.logprob))
        return top

    def chat(self, tokens: Sequence[TokenEvent]) -> ChatLogprobs:
        return ChatLogprobs([self._chosen(event) for event in tokens])

    def _chosen(self, event: TokenEvent) -> ChosenLogprob:
        return ChosenLogprob(
            self._name(event.token_id),
            finite(event.logprob),
            list(self._tokenizer.token_bytes(event.token_id)),
            [
                TokenLogprob(self._name(token_id), finite(value), list(self._tokenizer.token_bytes(token_id)))
                for token_id, value in self._top(event)
            ],
        )

    def _top(self, event: TokenEvent) -> list[tuple[int, float]]:
        return list((event.top_logprobs or {}).items())[: self._num_top]

    def _name(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._tokens_as_ids else self._tokenizer.token_text(token_id)


def prompt_logprobs(prompt: Sequence[TokenEvent], num_top: int, text_of: Callable[[int], str | None]) -> PromptLogprobs:
    """The token that stands at each place first, then the ``num_top`` most likely ones; None for the prompt's first."""
    return [None if event.logprob is None else _at_place(event, num_top, text_of) for event in prompt]


def _at_place(event: TokenEvent, num_top: int, text_of: Callable[[int], str | None]) -> dict[int, PromptLogprob]:
    top = event.top_logprobs or {}
    ranks = {token_id: rank for rank, token_id in enumerate(top, start=1)}
    told = {event.token_id: event.logprob, **dict(list(top.items())[:num_top])}
    return {i: PromptLogprob(finite(value), ranks.get(i, event.rank), text_of(i)) for i, value in told.items()}


def finite(logprob: float | None) -> float:
    return MIN_LOGPROB if logprob is None else max(logprob, MIN_LOGPROB)

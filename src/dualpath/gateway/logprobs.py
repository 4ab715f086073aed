"""Log probabilities in the two forms OpenAI has for them: four parallel lists, and one object per token."""

from __future__ import annotations

from collections.abc import Sequence

from dualpath.core.request import TokenEvent
from dualpath.gateway.shapes import ChatLogprobs, ChosenLogprob, CompletionLogprobs, TokenLogprob
from dualpath.gateway.tokenizer import Tokenizer

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
        out = CompletionLogprobs([], [], [], [])
        for event in tokens:
            text = self._name(event.token_id)
            top = {self._name(token_id): _finite(value) for token_id, value in self._top(event)}
            top.setdefault(text, _finite(event.logprob))
            out.tokens.append(text)
            out.token_logprobs.append(_finite(event.logprob))
            out.top_logprobs.append(top)
            out.text_offset.append(self._text_offset)
            self._text_offset += len(self._tokenizer.token_text(event.token_id))
        return out

    def chat(self, tokens: Sequence[TokenEvent]) -> ChatLogprobs:
        return ChatLogprobs([self._chosen(event) for event in tokens])

    def _chosen(self, event: TokenEvent) -> ChosenLogprob:
        return ChosenLogprob(
            self._name(event.token_id),
            _finite(event.logprob),
            list(self._tokenizer.token_bytes(event.token_id)),
            [
                TokenLogprob(self._name(token_id), _finite(value), list(self._tokenizer.token_bytes(token_id)))
                for token_id, value in self._top(event)
            ],
        )

    def _top(self, event: TokenEvent) -> list[tuple[int, float]]:
        return list((event.top_logprobs or {}).items())[: self._num_top]

    def _name(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._tokens_as_ids else self._tokenizer.token_text(token_id)


def _finite(logprob: float | None) -> float:
    return MIN_LOGPROB if logprob is None else max(logprob, MIN_LOGPROB)

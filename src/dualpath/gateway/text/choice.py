"""One choice: tokens come in, pieces of text come out that are safe to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dualpath.core.request import FinishReason, Request, TokenEvent
from dualpath.gateway.text.detokenize import Decode, IncrementalDetokenizer
from dualpath.gateway.text.stops import StopMatcher


@dataclass(slots=True)
class Delta:
    """New text of a choice and the tokens whose text is now shown; ``finish_reason`` is set on the last one only."""

    index: int
    text: str
    tokens: list[TokenEvent] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Choice:
    """Detokenises and looks for stop strings. A token leaves with the piece that completes its text."""

    def __init__(
        self,
        index: int,
        request: Request,
        decode: Decode,
        *,
        stops: Sequence[str] = (),
        include_stop: bool = False,
        show_tokens: bool = False,
        hides_output: bool = False,
    ) -> None:
        """``show_tokens``: the client sees token ids or logprobs, so even a token without text makes a delta.
        ``hides_output``: it wants none, only what comes with the first."""
        self.index = index
        self.request = request
        self.num_tokens = 0
        self.finished = False
        self.first: TokenEvent | None = None
        self._hides_output = hides_output
        self._detokenizer = IncrementalDetokenizer(decode, request.prompt_token_ids)
        self._stops = StopMatcher(stops, include_stop=include_stop) if stops else None
        self._include_stop = include_stop
        self._show_tokens = show_tokens
        self._waiting: list[TokenEvent] = []

    def push(self, event: TokenEvent) -> Delta | None:
        """None if nothing can be shown yet. After a delta with a finish reason nothing may be pushed."""
        if self.first is None:
            self.first = event
        if self._hides_output:
            self.finished = True
            return Delta(self.index, "", [], FinishReason.LENGTH.value)
        self.num_tokens += 1
        reason = event.finish_reason
        text, stop_string = self._text_of(event)
        if stop_string is not None:
            reason = FinishReason.STOP
        self._waiting.append(event)
        if reason is None:
            return self._delta(text)
        self.finished = True
        tokens, self._waiting = self._waiting, []
        stop_reason = stop_string if stop_string is not None else self._stop_token(event, reason)
        return Delta(self.index, text, tokens, reason.value, stop_reason)

    def abort(self) -> Delta:
        """Nothing more will come: the rest of what there is."""
        self.finished = True
        text = self._detokenizer.flush()
        if self._stops is not None:
            text = self._stops.push(text)
            text += "" if self._stops.matched else self._stops.flush()
        tokens, self._waiting = self._waiting, []
        return Delta(self.index, text, tokens, FinishReason.ABORT.value)

    def _delta(self, text: str) -> Delta | None:
        holding = self._detokenizer.holding or (self._stops is not None and self._stops.holding)
        if not text and (holding or not self._show_tokens):
            return None
        if holding:  # Part of these tokens' text is a secret still.
            return Delta(self.index, text)
        tokens, self._waiting = self._waiting, []
        return Delta(self.index, text, tokens)

    def _text_of(self, event: TokenEvent) -> tuple[str, str | None]:
        """(text that may be shown, the stop string found)."""
        reason = event.finish_reason
        hidden = reason is FinishReason.STOP and not self._include_stop  # the token that ended it
        text = "" if hidden else self._detokenizer.push(event.token_id)
        if reason is not None:
            text += self._detokenizer.flush()
        # Nothing that came among the tokens that must come is a stop string: vLLM's rule.
        if self._stops is None or self.num_tokens <= self.request.sampling.min_tokens:
            return text, None
        text = self._stops.push(text)
        if self._stops.matched is None and reason is not None:
            text += self._stops.flush()
        return text, self._stops.matched

    def _stop_token(self, event: TokenEvent, reason: FinishReason) -> int | None:
        """The stop token that ended it, as the client named it; None for the model's own end of text."""
        named = reason is FinishReason.STOP and event.token_id in self.request.sampling.stop_token_ids
        return event.token_id if named else None

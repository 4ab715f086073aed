"""/v1/chat/completions' answers: messages, whole or in chunks, with reasoning and tool calls taken out of the text."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec import UNSET

from dualpath.core.request import FinishReason, TokenEvent
from dualpath.gateway.job import GenerationJob
from dualpath.gateway.openai.sampling import Output
from dualpath.gateway.openai.shapes import (
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    Function,
    ToolCall,
    ToolCallDelta,
    Usage,
    encode_json,
    json_line,
)
from dualpath.gateway.openai.writer import UsageIn, Writer, cut
from dualpath.gateway.text.answer import AnswerReading
from dualpath.gateway.text.answer_parser import AnswerParser
from dualpath.gateway.text.choice import Delta
from dualpath.gateway.text.pieces import CallDelta, Piece, ReasoningDelta
from dualpath.gateway.text.tokenizer import Tokenizer

TOOL_CALLS = "tool_calls"  # finish reason


@dataclass(slots=True)
class _Answer:
    """One choice: what has been seen of it."""

    parser: AnswerParser
    started: bool = False
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    arguments: list[list[str]] = field(default_factory=list)  # of each call, in pieces
    tokens: list[TokenEvent] = field(default_factory=list)
    last: Delta | None = None

    def pieces(self, delta: Delta) -> list[Piece]:
        pieces = self.parser.push(delta.text) if delta.text else []
        return pieces + self.parser.close() if delta.finish_reason else pieces

    def finish_reason(self, delta: Delta) -> str | None:
        called = self.parser.num_calls > 0
        return TOOL_CALLS if called and delta.finish_reason == FinishReason.STOP.value else delta.finish_reason


class ChatWriter(Writer):
    chunk_object = "chat.completion.chunk"
    whole_object = "chat.completion"

    def __init__(
        self,
        job: GenerationJob,
        tokenizer: Tokenizer,
        output: Output,
        *,
        reading: AnswerReading,
        usage: UsageIn = UsageIn.NOTHING,
    ) -> None:
        super().__init__(job, tokenizer, output, usage=usage)
        self._answers = [_Answer(reading.parser()) for _ in job.choices]
        self._logprobs = self._logprob_writers([0] * len(job.choices))
        # What stands around the text of a chunk that says nothing else, as most are.
        self._is_text_only = not output.show_tokens and not self.usage_in_every_chunk
        self._around_text = [
            cut(self._chunk(ChatChunkChoice(index, ChatDelta(content=""))), b'"content":', b'""')
            for index in range(len(job.choices))
        ]

    def chunk(self, delta: Delta) -> bytes:
        answer = self._answers[delta.index]
        out = b"" if answer.started else self._first_chunk(delta.index)
        answer.started = True
        pieces = answer.pieces(delta)
        if self._is_text_only and not delta.finish_reason and len(pieces) == 1 and isinstance(pieces[0], str):
            head, tail = self._around_text[delta.index]
            return out + head + json_line(pieces[0]) + tail
        deltas = [_chat_delta(piece) for piece in pieces]
        if not deltas and not delta.finish_reason and not (delta.tokens and self.output.show_tokens):
            return out
        # What belongs to the delta as a whole travels with its last piece.
        *early, last = deltas or [ChatDelta()]
        for piece in early:
            out += self._chunk(ChatChunkChoice(delta.index, piece))
        choice = ChatChunkChoice(delta.index, last, self._logprobs_of(delta.index, delta.tokens))
        choice.token_ids = self._token_ids(delta)
        if delta.finish_reason:
            choice.finish_reason, choice.stop_reason = answer.finish_reason(delta), delta.stop_reason
        return out + self._chunk(choice)

    def add(self, delta: Delta) -> None:
        answer = self._answers[delta.index]
        for piece in answer.pieces(delta):
            if isinstance(piece, str):
                answer.content.append(piece)
            elif isinstance(piece, ReasoningDelta):
                answer.reasoning.append(piece.text)
            elif piece.call_id is not None:
                answer.calls.append(ToolCall(piece.call_id, Function("", piece.name or "")))
                answer.arguments.append([piece.arguments])
            else:
                answer.arguments[-1].append(piece.arguments)
        answer.tokens += delta.tokens
        answer.last = delta

    def whole(self, usage: Usage) -> bytes:
        choices = [self._choice(i, answer) for i, answer in enumerate(self._answers)]
        envelope = self._envelope(self.whole_object, choices, usage)
        envelope.prompt_token_ids, envelope.prompt_logprobs = self._prompt_token_ids(0), self._prompt_logprobs(0)
        body: bytes = encode_json(envelope)
        return body

    def _choice(self, index: int, answer: _Answer) -> ChatChoice:
        last = answer.last
        assert last is not None, "a job that ended well has ended every choice"
        content = "".join(answer.content)
        message = ChatMessage(content if content or not answer.calls else None)
        if answer.reasoning:
            message.reasoning_content = message.reasoning = "".join(answer.reasoning)
        if answer.calls:
            message.tool_calls = answer.calls
            for call, pieces in zip(answer.calls, answer.arguments, strict=True):
                call.function.arguments = "".join(pieces)
        logprobs = self._logprobs_of(index, answer.tokens)
        choice = ChatChoice(index, message, logprobs, answer.finish_reason(last), last.stop_reason)
        if self.output.return_token_ids:
            choice.token_ids = [event.token_id for event in answer.tokens]
        return choice

    def _first_chunk(self, index: int) -> bytes:
        """Says who speaks; with it go the prompt's ids, once per answer."""
        choice = ChatChunkChoice(index, ChatDelta(role="assistant", content=""))
        return self._chunk(choice, self._prompt_token_ids(index))

    def _logprobs_of(self, index: int, tokens: list[TokenEvent]) -> ChatLogprobs | None:
        return self._logprobs[index].chat(tokens) if self._logprobs and tokens else None


def _chat_delta(piece: Piece) -> ChatDelta:
    if isinstance(piece, str):
        return ChatDelta(content=piece)
    if isinstance(piece, ReasoningDelta):
        return ChatDelta(reasoning_content=piece.text, reasoning=piece.text)
    return ChatDelta(tool_calls=[_call_delta(piece)])


def _call_delta(piece: CallDelta) -> ToolCallDelta:
    if piece.call_id is None:
        return ToolCallDelta(piece.index, Function(piece.arguments))
    function = Function(piece.arguments, UNSET if piece.name is None else piece.name)
    return ToolCallDelta(piece.index, function, piece.call_id, "function")

"""An answer as a row of blocks, which open, grow and close in turn: reasoning, content, one for each call.

Anthropic's API and OpenAI's Responses show answers so. Both make their streams of the steps, and whole answers of the
blocks that the same steps leave behind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from dualpath.core.request import TokenEvent
from dualpath.gateway.text.answer_parser import AnswerParser
from dualpath.gateway.text.choice import Delta
from dualpath.gateway.text.pieces import CallDelta, Piece, ReasoningDelta


class Kind(Enum):
    REASONING = "reasoning"
    CONTENT = "content"
    CALL = "call"


@dataclass(slots=True)
class Block:
    kind: Kind
    index: int
    call_id: str = ""
    name: str = ""
    is_closed: bool = False
    pieces: list[str] = field(default_factory=list)
    tokens: list[TokenEvent] = field(default_factory=list)  # those whose text is in it, as far as can be told

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Move(Enum):
    OPEN = "open"
    ADD = "add"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class Step:
    """``text`` and ``tokens``: what is new, where something is added."""

    move: Move
    block: Block
    text: str = ""
    tokens: tuple[TokenEvent, ...] = ()


class Blocks:
    """Of one choice, which ``parser`` reads."""

    def __init__(self, parser: AnswerParser) -> None:
        self._parser = parser
        self.blocks: list[Block] = []
        self.last: Delta | None = None  # that has ended the answer
        self.num_reasoning_tokens = 0

    @property
    def has_calls(self) -> bool:
        return self._parser.num_calls > 0

    def read(self, delta: Delta) -> list[Step]:
        pieces = self._parser.push(delta.text) if delta.text else []
        if delta.finish_reason:
            pieces += self._parser.close()
            self.last = delta
        steps: list[Step] = []
        for i, piece in enumerate(pieces):
            tokens = tuple(delta.tokens) if i == len(pieces) - 1 else ()
            self._read(piece, tokens, steps)
        if delta.tokens and self.blocks and self.blocks[-1].kind is Kind.REASONING and not self.blocks[-1].is_closed:
            self.num_reasoning_tokens += len(delta.tokens)
        if delta.finish_reason:
            self._close(steps)
        return steps

    def say_nothing(self) -> list[Step]:
        """Content of no text, for an API in which an answer has some."""
        block = Block(Kind.CONTENT, len(self.blocks), is_closed=True)
        self.blocks.append(block)
        return [Step(Move.OPEN, block), Step(Move.CLOSE, block)]

    def _read(self, piece: Piece, tokens: tuple[TokenEvent, ...], steps: list[Step]) -> None:
        kind, text = _kind_and_text(piece)
        begins_call = isinstance(piece, CallDelta) and piece.call_id is not None
        if begins_call or not self.blocks or self.blocks[-1].kind is not kind:
            self._close(steps)
            block = Block(kind, len(self.blocks))
            if isinstance(piece, CallDelta):
                block.call_id, block.name = piece.call_id or "", piece.name or ""
            self.blocks.append(block)
            steps.append(Step(Move.OPEN, block))
        if text:
            self.blocks[-1].pieces.append(text)
            self.blocks[-1].tokens += tokens
            steps.append(Step(Move.ADD, self.blocks[-1], text, tokens))

    def _close(self, steps: list[Step]) -> None:
        if self.blocks and not self.blocks[-1].is_closed:
            self.blocks[-1].is_closed = True
            steps.append(Step(Move.CLOSE, self.blocks[-1]))


def _kind_and_text(piece: Piece) -> tuple[Kind, str]:
    if isinstance(piece, str):
        return Kind.CONTENT, piece
    if isinstance(piece, ReasoningDelta):
        return Kind.REASONING, piece.text
    return Kind.CALL, piece.arguments

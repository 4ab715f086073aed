"""Answers read in any cutting, put together again as a client would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dualpath.gateway.text.answer import AnswerFormat
from dualpath.gateway.text.answer_parser import AnswerParser
from dualpath.gateway.text.pieces import CallDelta, Piece, ReasoningDelta

PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "share": {"type": ["number", "null"]},
    "deep": {"anyOf": [{"type": "object"}, {"type": "array"}]},
    "sure": {"type": "boolean"},
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": PROPERTIES}}}
    for name in ("weather", "other", "f")
]


@dataclass
class Answer:
    content: str
    reasoning: str
    calls: list[tuple[str, str]]
    num_calls: int  # those that were not passed on with them


def parser(
    calls: str = "hermes", reasoning: str | None = None, *, prompt: str = "", max_calls: int | None = None
) -> AnswerParser:
    return AnswerFormat(calls, reasoning).reading(prompt, tools=TOOLS, max_calls=max_calls).parser()


def read(parser: AnswerParser, texts: Sequence[str]) -> Answer:
    pieces: list[Piece] = [piece for text in texts for piece in parser.push(text)] + parser.close()
    answer = Answer("", "", [], parser.num_calls)
    for piece in pieces:
        if isinstance(piece, str):
            answer.content += piece
        elif isinstance(piece, ReasoningDelta):
            answer.reasoning += piece.text
        elif isinstance(piece, CallDelta) and piece.call_id is not None:
            assert piece.index == len(answer.calls)
            answer.calls.append((piece.name or "", piece.arguments))
        else:
            name, arguments = answer.calls[piece.index]
            answer.calls[piece.index] = (name, arguments + piece.arguments)
    return answer


def cuts(text: str, length: int) -> list[str]:
    return [text[i : i + length] for i in range(0, len(text), length)]

"""What a model says, in the one form that every API shape is written from: content, reasoning and pieces of calls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of call number ``index``. The first one has its id and name."""

    index: int
    call_id: str | None
    name: str | None
    arguments: str


Piece = str | ReasoningDelta | CallDelta  # str: content

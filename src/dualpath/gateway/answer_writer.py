"""The base of every API's writer, which makes a job's pieces into bytes, whole or as server-sent events."""

from __future__ import annotations

from abc import ABC, abstractmethod

from msgspec import UNSET, UnsetType

from dualpath.gateway.errors import ApiError
from dualpath.gateway.openai.shapes import Usage
from dualpath.gateway.text.choice import Delta


class AnswerWriter(ABC):
    """Of one answer: ``begin``, ``chunk`` for each delta, ``end`` of a stream; else ``add`` for each delta, ``whole``.

    All of a stream's may be empty but ``end``.
    """

    ping = b": ping\n\n"  # a comment, which clients skip
    usage_in_every_chunk = False  # then ``usage_so_far`` is set before each
    usage_so_far: Usage | UnsetType | None = UNSET

    def begin(self, usage: Usage) -> bytes:
        """What comes before everything else, pings included."""
        return b""

    @abstractmethod
    def chunk(self, delta: Delta) -> bytes: ...

    @abstractmethod
    def end(self, usage: Usage) -> bytes: ...

    @abstractmethod
    def failed(self, error: ApiError) -> bytes:
        """The end of a stream that cannot go on."""

    @abstractmethod
    def add(self, delta: Delta) -> None: ...

    @abstractmethod
    def whole(self, usage: Usage) -> bytes: ...

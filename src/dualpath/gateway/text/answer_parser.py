"""What reads an answer's text as content, reasoning and calls: the frame that all forms of answers share."""

from __future__ import annotations

from abc import ABC, abstractmethod

from dualpath.gateway.text.calls.sink import CallSink
from dualpath.gateway.text.pieces import Piece
from dualpath.gateway.text.reader import Need, Reader


class AnswerParser(ABC):
    """Feed text with ``push``, end with ``close``; both return pieces in order. However the text is cut, they say the
    same."""

    def __init__(self, max_calls: int | None = None) -> None:
        self._reader = Reader()
        self._sink = CallSink(max_calls)
        self._reading: Need[None] | None = self._read()

    @property
    def num_calls(self) -> int:
        return self._sink.num_calls

    def push(self, text: str) -> list[Piece]:
        self._reader.feed(text)
        return self._resume()

    def close(self) -> list[Piece]:
        self._reader.ended = True
        return self._resume()

    @abstractmethod
    def _read(self) -> Need[None]:
        """Put all that comes into the sink."""

    def _resume(self) -> list[Piece]:
        if self._reading is not None:
            try:
                next(self._reading)
            except StopIteration:
                self._reading = None
        out, self._sink.out = self._sink.out, []
        return out


class PlainParser(AnswerParser):
    """All text is content."""

    def push(self, text: str) -> list[Piece]:
        return [text] if text else []

    def _read(self) -> Need[None]:
        while True:
            if self._reader.num_held:
                self._sink.out.append(self._reader.take(self._reader.num_held))
            if self._reader.ended:
                return
            yield

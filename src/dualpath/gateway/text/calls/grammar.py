"""What reads tool calls out of an answer's text, in the form of one model family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dualpath.gateway.text.calls.sink import CallSink
from dualpath.gateway.text.reader import Need, Reader


class CallGrammar(ABC):
    """It is asked where one of its openers stands, and takes nothing before it knows a call's name and arguments: what
    looks like a call and is none stays content, and is looked through like any other."""

    openers: ClassVar[tuple[str, ...]]
    bare_openers: ClassVar[tuple[str, ...]] = ()  # these count only where an answer begins
    closers: ClassVar[tuple[str, ...]] = ()
    inner: ClassVar[tuple[str, ...]] = ()  # other marks of the form

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """``tools`` that may be called, in OpenAI's chat form."""
        self.tools = tools
        functions = [tool.get("function") for tool in tools]
        self.names = frozenset(str(item.get("name")) for item in functions if isinstance(item, Mapping))
        self.markers = self.openers + self.closers

    @classmethod
    def markup(cls) -> tuple[str, ...]:
        """What may be special tokens."""
        return (*cls.openers, *cls.closers, *cls.inner)

    @abstractmethod
    def read(self, reader: Reader, i: int, opener: str, sink: CallSink) -> Need[bool]:
        """Take the calls behind ``opener``, which ends at ``i``, and their closing marks; False if there are none."""


def take_mark(reader: Reader, *marks: str, blank: str = " \t\r\n") -> Need[None]:
    """Take marks and what is blank before each; where none is, nothing."""
    while True:
        i = yield from reader.skip_blank(0, blank)
        mark = yield from reader.sees(i, *marks)
        if not mark:
            return
        reader.take(i + len(mark))

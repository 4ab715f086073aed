"""The forms in which model families write tool calls, by the names that vLLM has for its parsers.

A grammar is asked where one of its openers stands. It takes nothing before it knows a call's name and arguments: what
looks like a call and is none stays content, and is looked through like any other. Arguments are passed on as they are
written, character for character: the next turn's prompt then repeats the tokens that the model made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dualpath.gateway.text.call_sink import CallSink
from dualpath.gateway.text.json_calls import read_arguments, read_json_call
from dualpath.gateway.text.reader import Need, Reader
from dualpath.gateway.text.xml_calls import END_FUNCTION, FUNCTION, read_xml_call

_NAME_CHARS = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-./:")


class CallGrammar(ABC):
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


class HermesCalls(CallGrammar):
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` (Hermes, Qwen), or with tags in it (Qwen3-Coder),
    which may come without the outer one."""

    openers = ("<tool_call>", FUNCTION)
    closers = ("</tool_call>",)

    def read(self, reader: Reader, i: int, opener: str, sink: CallSink) -> Need[bool]:
        if opener == FUNCTION:
            called = yield from read_xml_call(reader, i - len(FUNCTION), sink, self.tools)
        else:
            i = yield from reader.skip_blank(i)
            if (yield from reader.peek(i)) == "<":
                called = yield from read_xml_call(reader, i, sink, self.tools)
            else:
                called = yield from read_json_call(reader, i, sink, self.markers)
        if called:
            yield from take_mark(reader, *self.closers, END_FUNCTION, blank=" \t\r\n}")
        return called


class LlamaCalls(CallGrammar):
    """``{"name": ..., "parameters": {...}}``, several with ``;`` between, behind ``<|python_tag|>`` or bare."""

    openers = ("<|python_tag|>",)
    bare_openers = ("{",)

    def read(self, reader: Reader, i: int, opener: str, sink: CallSink) -> Need[bool]:
        only = None
        if opener == "{":
            i, only = i - 1, self.names
        i = yield from reader.skip_blank(i)
        if not (yield from read_json_call(reader, i, sink, self.markers, only=only)):
            return False
        while True:
            i = yield from reader.skip_blank(0, " \t\r\n;")
            i += len((yield from reader.sees(i, *self.openers)))
            i = yield from reader.skip_blank(i)
            if not (yield from read_json_call(reader, i, sink, self.markers, only=self.names)):
                return True


class MistralCalls(CallGrammar):
    """``[TOOL_CALLS]`` and a list of objects, or a name and its arguments."""

    openers = ("[TOOL_CALLS]",)
    inner = ("[CALL_ID]", "[ARGS]")

    def read(self, reader: Reader, i: int, opener: str, sink: CallSink) -> Need[bool]:
        i = yield from reader.skip_blank(i)
        first = yield from reader.peek(i)
        if first == "[":
            return (yield from self._list(reader, i + 1, sink))
        if first == "{":
            return (yield from read_json_call(reader, i, sink, self.markers))
        start, i = i, (yield from _skip_name(reader, i))
        name = reader.text(start, i)
        if (yield from reader.sees(i, "[CALL_ID]")):
            i = yield from _skip_name(reader, i + len("[CALL_ID]"))
        i += len((yield from reader.sees(i, "[ARGS]")))
        i = yield from reader.skip_blank(i)
        return (yield from read_arguments(reader, i, name, sink, self.markers))

    def _list(self, reader: Reader, i: int, sink: CallSink) -> Need[bool]:
        called = False
        while True:
            i = yield from reader.skip_blank(i, " \t\r\n,")
            if not (yield from read_json_call(reader, i, sink, self.markers)):
                break
            called, i = True, 0
        if called:
            yield from take_mark(reader, "]")
        return called


class DeepSeekCalls(CallGrammar):
    """DeepSeek V3 and R1: ``function<sep>name``, then JSON in a code block; V3.1: ``name<sep>`` and JSON."""

    openers = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")
    closers = ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")
    separator = "<｜tool▁sep｜>"
    inner = (separator,)

    def read(self, reader: Reader, i: int, opener: str, sink: CallSink) -> Need[bool]:
        begin, (end, end_all) = self.openers[1], self.closers
        if opener != begin:
            i = yield from reader.skip_blank(i)
            if not (yield from reader.sees(i, begin)):
                return False
            i += len(begin)
        if not (yield from self._call(reader, i, sink)):
            return False
        while True:
            yield from take_mark(reader, end)
            i = yield from reader.skip_blank(0)
            if not (yield from reader.sees(i, begin)):
                break
            if not (yield from self._call(reader, i + len(begin), sink)):
                break
        yield from take_mark(reader, end_all)
        return True

    def _call(self, reader: Reader, i: int, sink: CallSink) -> Need[bool]:
        found = yield from reader.find(i, self.separator, "\n", *self.markers)
        if found is None or found[1] != self.separator:
            return False
        name, i = reader.text(i, found[0]).strip(), found[0] + len(self.separator)
        if name == "function":
            line = yield from reader.find(i, "\n", *self.markers)
            if line is None or line[1] != "\n":
                return False
            name, i = reader.text(i, line[0]).strip(), line[0]
            i = yield from reader.skip_blank(i)
            i += len((yield from reader.sees(i, "```json", "```")))
        i = yield from reader.skip_blank(i)
        if not (yield from read_arguments(reader, i, name, sink, self.markers)):
            return False
        yield from take_mark(reader, "```")
        return True


def take_mark(reader: Reader, *marks: str, blank: str = " \t\r\n") -> Need[None]:
    """Take marks and what is blank before each; where none is, nothing."""
    while True:
        i = yield from reader.skip_blank(0, blank)
        mark = yield from reader.sees(i, *marks)
        if not mark:
            return
        reader.take(i + len(mark))


def _skip_name(reader: Reader, i: int) -> Need[int]:
    while (char := (yield from reader.peek(i))) and char in _NAME_CHARS:
        i += 1
    return i


GRAMMARS: dict[str, type[CallGrammar]] = {
    "hermes": HermesCalls,
    "qwen3_coder": HermesCalls,
    "llama3_json": LlamaCalls,
    "mistral": MistralCalls,
    "deepseek_v3": DeepSeekCalls,
}

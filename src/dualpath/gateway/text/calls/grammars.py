"""The forms in which model families write tool calls, by the names that vLLM has for its parsers.

Arguments are passed on as they are written, character for character: the next turn's prompt then repeats the tokens
that the model made.
"""

from __future__ import annotations

from typing import ClassVar

from dualpath.gateway.text.calls.gemma_calls import GemmaCalls
from dualpath.gateway.text.calls.grammar import CallGrammar, take_mark
from dualpath.gateway.text.calls.json_calls import read_arguments, read_json_call
from dualpath.gateway.text.calls.python_calls import PythonCalls
from dualpath.gateway.text.calls.sink import CallSink
from dualpath.gateway.text.calls.tag_calls import DSML, GLM, INVOKE, QWEN_CODER, SEED, Tags, read_tagged_call
from dualpath.gateway.text.reader import Need, Reader

_NAME_CHARS = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-./:")


class TaggedCalls(CallGrammar):
    """Calls in tags, between marks of their own."""

    tags: ClassVar[Tags]

    def read(self, reader: Reader, i: int, opener: str, sink: CallSink) -> Need[bool]:
        if self.tags.function and opener == self.tags.function:  # without the mark, which models forget
            return (yield from self._calls(reader, i - len(opener), sink, only=self.names))
        i = yield from reader.skip_blank(i)
        if (yield from reader.peek(i)) != "{":
            return (yield from self._calls(reader, i, sink))
        called = yield from read_json_call(reader, i, sink, self.markers)
        if called:
            yield from take_mark(reader, *self.closers, blank=" \t\r\n}")
        return called

    def _calls(self, reader: Reader, i: int, sink: CallSink, *, only: frozenset[str] | None = None) -> Need[bool]:
        if not (yield from read_tagged_call(reader, i, sink, self.tools, self.tags, only=only)):
            return False
        while self.tags.function:
            i = yield from reader.skip_blank(0)
            if not (yield from read_tagged_call(reader, i, sink, self.tools, self.tags, only=only)):
                break
        yield from take_mark(reader, *self.closers, self.tags.end_function)
        return True


class HermesCalls(TaggedCalls):
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` (Hermes, Qwen), or with tags in it (Qwen3-Coder),
    which may come without the outer one."""

    tags = QWEN_CODER
    openers = ("<tool_call>", tags.function)
    closers = ("</tool_call>",)


class SeedCalls(TaggedCalls):
    tags = SEED
    openers = ("<seed:tool_call>", tags.function)
    closers = ("</seed:tool_call>",)


class GlmCalls(TaggedCalls):
    """GLM 4.5 and later: ``<tool_call>NAME``, then ``<arg_key>`` and ``<arg_value>`` in turn."""

    tags = GLM
    openers = ("<tool_call>",)
    closers = ("</tool_call>",)
    inner = (GLM.parameter, GLM.end_key, GLM.begin_value, GLM.end_parameter)


class MiniMaxCalls(TaggedCalls):
    """MiniMax M2: ``<invoke name="...">`` and ``<parameter name="...">``."""

    tags = INVOKE
    openers = ("<minimax:tool_call>", tags.function)
    closers = ("</minimax:tool_call>",)


class DsmlCalls(TaggedCalls):
    """DeepSeek V3.2, and with ``tool_calls`` V4: such tags with ``｜DSML｜``, which say what is a string."""

    tags = DSML
    openers = ("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>", tags.function)
    closers = ("</｜DSML｜function_calls>", "</｜DSML｜tool_calls>")
    inner = ("｜DSML｜",)


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
            i = yield from reader.skip_blank(0, " \t\r\n;,")
            i += len((yield from reader.sees(i, *self.openers)))
            i = yield from reader.skip_blank(i)
            if not (yield from read_json_call(reader, i, sink, self.markers, only=self.names)):
                return True


class ListedCalls(CallGrammar):
    """A mark and objects, mostly in a list."""

    def read(self, reader: Reader, i: int, opener: str, sink: CallSink) -> Need[bool]:
        i = yield from reader.skip_blank(i)
        i += len((yield from reader.sees(i, "[")))
        called = False
        while True:
            i = yield from reader.skip_blank(i, " \t\r\n,")
            if not (yield from read_json_call(reader, i, sink, self.markers)):
                break
            called, i = True, 0
        if called:
            yield from take_mark(reader, "]", *self.closers)
        return called


class GraniteCalls(ListedCalls):
    """Granite 3; version 4 writes as Hermes does."""

    openers = ("<|tool_call|>", "<tool_call>")
    closers = ("</tool_call>",)


class PhiCalls(ListedCalls):
    """Phi-4-mini: ``functools[{...}]``, with its mark and its bracket in one."""

    openers = ("<|tool_call|>", "functools[")
    closers = ("<|/tool_call|>",)

    def read(self, reader: Reader, i: int, opener: str, sink: CallSink) -> Need[bool]:
        return (yield from super().read(reader, i - int(opener.endswith("[")), opener, sink))


class HunyuanCalls(ListedCalls):
    """Hunyuan A13B, Apriel, MiniMax M1."""

    openers = ("<tool_calls>",)
    closers = ("</tool_calls>",)


class NemotronCalls(ListedCalls):
    """Nemotron Nano v2 and its like."""

    openers = ("<TOOLCALL>",)
    closers = ("</TOOLCALL>",)


class MistralCalls(ListedCalls):
    """``[TOOL_CALLS]`` and a list of objects, or a name, perhaps an id, and arguments."""

    openers = ("[TOOL_CALLS]",)
    inner = ("[CALL_ID]", "[ARGS]")

    def read(self, reader: Reader, i: int, opener: str, sink: CallSink) -> Need[bool]:
        i = yield from reader.skip_blank(i)
        if (yield from reader.peek(i)) in ("[", "{"):
            return (yield from super().read(reader, i, opener, sink))
        start, i = i, (yield from _skip_name(reader, i))
        name, call_id = reader.text(start, i), ""
        if (yield from reader.sees(i, "[CALL_ID]")):
            start = i + len("[CALL_ID]")
            i = yield from _skip_name(reader, start)
            call_id = reader.text(start, i)
        i += len((yield from reader.sees(i, "[ARGS]")))
        i = yield from reader.skip_blank(i)
        return (yield from read_arguments(reader, i, name, sink, self.markers, call_id))


class SectionCalls(CallGrammar):
    """A section with calls, each between marks: first what says which it is, then its arguments. ``openers`` begin the
    section and a call, ``closers`` end the call and the section."""

    separator: ClassVar[str]

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
        called = reader.text(i, found[0]).strip()
        return (yield from self._arguments(reader, found[0] + len(self.separator), called, sink))

    def _arguments(self, reader: Reader, i: int, called: str, sink: CallSink) -> Need[bool]:
        """``called``: what stands before the separator."""
        raise NotImplementedError


class DeepSeekCalls(SectionCalls):
    """DeepSeek V3 and R1: ``function<sep>name``, then JSON in a code block; V3.1: ``name<sep>`` and JSON."""

    openers = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")
    closers = ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")
    separator = "<｜tool▁sep｜>"
    inner = (separator,)

    def _arguments(self, reader: Reader, i: int, called: str, sink: CallSink) -> Need[bool]:
        if called == "function":
            line = yield from reader.find(i, "\n", *self.markers)
            if line is None or line[1] != "\n":
                return False
            called, i = reader.text(i, line[0]).strip(), line[0]
            i = yield from reader.skip_blank(i)
            i += len((yield from reader.sees(i, "```json", "```")))
        i = yield from reader.skip_blank(i)
        if not (yield from read_arguments(reader, i, called, sink, self.markers)):
            return False
        yield from take_mark(reader, "```")
        return True


class KimiCalls(SectionCalls):
    """Kimi K2: an id such as ``functions.read:0`` says which it is."""

    openers = ("<|tool_calls_section_begin|>", "<|tool_call_begin|>")
    closers = ("<|tool_call_end|>", "<|tool_calls_section_end|>")
    separator = "<|tool_call_argument_begin|>"
    inner = (separator,)

    def _arguments(self, reader: Reader, i: int, called: str, sink: CallSink) -> Need[bool]:
        name, colon, number = called.removeprefix("functions.").rpartition(":")
        if not colon or not number.isdecimal():
            name = called.removeprefix("functions.")
        i = yield from reader.skip_blank(i)
        return (yield from read_arguments(reader, i, name, sink, self.markers, called))


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
    "deepseek_v32": DsmlCalls,
    "kimi_k2": KimiCalls,
    "glm45": GlmCalls,
    "minimax_m2": MiniMaxCalls,
    "seed_oss": SeedCalls,
    "gemma4": GemmaCalls,
    "granite": GraniteCalls,
    "phi4_mini_json": PhiCalls,
    "hunyuan_a13b": HunyuanCalls,
    "nemotron_json": NemotronCalls,
    "pythonic": PythonCalls,
}

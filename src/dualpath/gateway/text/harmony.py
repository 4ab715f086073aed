"""Answers in gpt-oss' form (Harmony): messages in channels, ``<|channel|>final<|message|>...<|end|>``.

The form is OpenAI's: https://cookbook.openai.com/articles/openai-harmony. The analysis channel and what goes to
built-in tools are reasoning, a message to ``functions.NAME`` is a call, all else is content.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dualpath.gateway.text.answer_parser import AnswerParser
from dualpath.gateway.text.pieces import ReasoningDelta
from dualpath.gateway.text.reader import Need, TooLongError

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
MARKUP = (START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN)
_ENDS = (END, CALL, RETURN)
_BODY_ENDS = (*_ENDS, START, CHANNEL)
_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_FUNCTIONS = "functions."


class HarmonyParser(AnswerParser):
    def __init__(self, *, calls: bool, max_calls: int | None = None) -> None:
        """``calls``: whether there may be any; a model that makes one nevertheless has only thought of it."""
        self._calls = calls
        self._said: set[str] = set()  # content or reasoning: whether an earlier message was
        self._begins = False  # a message that has said nothing yet
        super().__init__(max_calls)

    def _read(self) -> Need[None]:
        while True:
            i = yield from self._reader.skip_blank(0)
            if not (yield from self._reader.peek(i)):
                return
            if (yield from self._reader.sees(i, *_ENDS)):
                self._reader.take(i + len((yield from self._reader.sees(i, *_ENDS))))
                continue
            self._begins = True
            try:
                header = yield from self._header(i)
            except TooLongError:
                header = None
            if header is None:
                yield from self._body(self._content, at_least=i + 1)
                continue
            channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
            name = recipient.group(1) if recipient else ""
            if self._calls and name.startswith(_FUNCTIONS) and name != _FUNCTIONS:
                yield from self._call(name.removeprefix(_FUNCTIONS))
            elif name or (channel is not None and channel.group(1) == "analysis"):
                yield from self._body(self._reasoning)
            else:
                yield from self._body(self._content)

    def _header(self, i: int) -> Need[str | None]:
        """Take what stands before a message's text; None, and nothing is taken, where none begins."""
        if not (yield from self._reader.sees(i, START, CHANNEL, MESSAGE, "to=")):
            return None
        found = yield from self._reader.find(i, MESSAGE, *_ENDS)
        if found is None or found[1] != MESSAGE:
            return None
        self._reader.take(i)
        header = self._reader.take(found[0] - i)
        self._reader.take(len(MESSAGE))
        return header

    def _body(self, put: Callable[[str], None], *, at_least: int = 0) -> Need[None]:
        """Take a message's text up to the mark that ends it; the first ``at_least`` characters are no mark."""
        reader = self._reader
        while True:
            found = [at for mark in _BODY_ENDS if (at := reader.index(mark, at_least)) >= 0]
            num_partial = 0 if reader.ended else reader.num_partial(_BODY_ENDS)
            num_chars = min(found) if found else max(at_least, reader.num_held - num_partial)
            text = reader.take(num_chars)
            at_least = max(0, at_least - len(text))
            if text:
                put(text)
            if found or reader.ended:
                return
            yield

    def _call(self, name: str) -> Need[None]:
        self._reader.take((yield from self._reader.skip_blank(0)))
        if (yield from self._reader.peek(0)) == "{":
            self._sink.begin(name)
            yield from self._body(self._sink.arguments)
            return
        body: list[str] = []
        yield from self._body(body.append)
        self._sink.whole(name, "".join(body))

    def _content(self, text: str) -> None:
        self._sink.out.append(self._on_a_line("content", text))

    def _reasoning(self, text: str) -> None:
        self._sink.out.append(ReasoningDelta(self._on_a_line("reasoning", text)))

    def _on_a_line(self, kind: str, text: str) -> str:
        """``text``, on a line of its own where a message begins and one of its kind came before."""
        if self._begins and kind in self._said:
            text = "\n" + text
        self._said.add(kind)
        self._begins = False
        return text

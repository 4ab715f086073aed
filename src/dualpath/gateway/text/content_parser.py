"""Answers that are text, with reasoning in tags and calls in the model family's form.

Reasoning is found here, so that no grammar of calls ever sees it: what a model only thinks of doing is not done.
"""

from __future__ import annotations

import contextlib
import re

from dualpath.gateway.text.answer_parser import AnswerParser
from dualpath.gateway.text.calls.grammar import CallGrammar
from dualpath.gateway.text.pieces import Piece, ReasoningDelta
from dualpath.gateway.text.reader import Need, TooLongError


class ContentParser(AnswerParser):
    def __init__(
        self,
        grammar: CallGrammar | None,
        tags: tuple[str, str],
        *,
        splits_reasoning: bool,
        in_reasoning: bool,
        max_calls: int | None = None,
    ) -> None:
        """``grammar`` None: no calls. ``tags`` around reasoning; where the model is not known to reason
        (``splits_reasoning`` false) they and what is between them are content, and still no calls come out of it.
        ``in_reasoning``: the prompt has opened it."""
        self._grammar = grammar
        self._begin, self._end = tags
        self._splits_reasoning = splits_reasoning
        self._in_reasoning = in_reasoning
        openers = grammar.openers if grammar else ()
        self._marks = (self._begin, *openers)
        bare = grammar.bare_openers if grammar else ()
        self._pattern = re.compile("|".join(map(re.escape, (*self._marks, *bare))))
        # The line break before a call belongs to the markup: chat templates write one there.
        self._partial = (*self._marks, *("\n" + opener for opener in openers))
        # Where text without any of these, and not blank, is a piece as it is; and what piece, if it is so now.
        self._notable = {mark[0] for mark in (*self._partial, *bare, self._end)} | {"\n"}
        self._passing: type[str] | type[ReasoningDelta] | None = None
        self._line_is_blank = True
        self._blank: str | None = ""  # blank text at the beginning, or behind reasoning or a call: maybe layout
        super().__init__(max_calls)

    def push(self, text: str) -> list[Piece]:
        """Most tokens pass without a look at the grammar."""
        passing = self._passing
        if passing is None or self._reader.num_held or not self._notable.isdisjoint(text) or text.isspace():
            return super().push(text)
        self._line_is_blank = False
        return [passing(text)] if text else []

    def _read(self) -> Need[None]:
        if self._in_reasoning:
            yield from self._reasoning()
        while True:
            held = self._reader.text(0, self._reader.num_held)
            match = self._pattern.search(held)
            if match:
                yield from self._at_mark(match.start(), match.group())
                continue
            num_partial = 0 if self._reader.ended else self._reader.num_partial(self._partial)
            self._content(len(held) - num_partial)
            if self._reader.ended:
                break
            self._passing = str if self._blank is None else None
            yield
            self._passing = None
        if self._blank and not self.num_calls:
            self._sink.out.append(self._blank)

    def _at_mark(self, at: int, mark: str) -> Need[None]:
        if mark == self._begin:
            self._content(at)
            if self._line_is_blank:
                yield from self._reasoning()
            else:
                self._content(len(mark))
            return
        grammar = self._grammar
        assert grammar is not None, "only a grammar's openers are looked for"
        num_breaks = int(at > 0 and self._reader.text(at - 1, at) == "\n")
        self._content(at - num_breaks)
        end = num_breaks + len(mark)
        before = self.num_calls
        if mark not in grammar.bare_openers or self._blank is not None:
            with contextlib.suppress(TooLongError):  # a call that has begun stays as it is
                yield from grammar.read(self._reader, end, mark, self._sink)
        if self.num_calls == before:
            self._content(end)
        else:
            self._line_is_blank, self._blank = True, ""

    def _reasoning(self) -> Need[None]:
        """From the opening tag, if the text begins with it, to the closing one."""
        reader = self._reader
        if (yield from reader.sees(0, self._begin)):
            if self._splits_reasoning:
                reader.take(len(self._begin))
            else:
                self._content(len(self._begin))
        while True:
            end = reader.index(self._end)
            num_partial = 0 if reader.ended else reader.num_partial((self._end,))
            num_chars = end if end >= 0 else reader.num_held - num_partial
            if not self._splits_reasoning:
                self._content(num_chars)
            elif num_chars:
                self._sink.out.append(ReasoningDelta(reader.take(num_chars)))
            if end >= 0:
                break
            if reader.ended:
                return
            self._passing = ReasoningDelta if self._splits_reasoning else str if self._blank is None else None
            yield
            self._passing = None
        if self._splits_reasoning:
            reader.take(len(self._end))
            self._blank = ""
        else:
            self._content(len(self._end))
        self._line_is_blank = True

    def _content(self, num_chars: int) -> None:
        """Take so much as content. Blank text around reasoning and calls is dropped if nothing follows it."""
        text = self._reader.take(num_chars)
        if not text:
            return
        line = text[text.rfind("\n") + 1 :]
        self._line_is_blank = (not line or line.isspace()) and ("\n" in text or self._line_is_blank)
        if self._blank is not None:
            text = self._blank + text
            if text.isspace():
                self._blank = text
                return
            self._blank = None
        self._sink.out.append(text)

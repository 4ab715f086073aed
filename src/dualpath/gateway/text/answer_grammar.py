"""The grammar of an answer as a model family writes it: reasoning as ever, then calls or content as they must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dualpath.gateway.text import harmony
from dualpath.gateway.text.answer import HARMONY, AnswerFormat, tag_token
from dualpath.gateway.text.calls.form import Tool
from dualpath.gateway.text.calls.forms import call_form
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.grammar.lark import ANY_TEXT, Rules, either, quoted

Content = Callable[[Rules], str]  # adds the rules of what content must be, and gives the part of a rule that it is


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of an answer; at least one thing."""

    content: Content | None = None  # None: any
    tools: Sequence[Tool] = ()  # that may be called
    must_call: bool = False
    may_call_many: bool = True


def content_grammar(content: Content) -> str:
    rules = Rules()
    return rules.grammar(content(rules))


def answer_grammar(wanted: Wanted, format: AnswerFormat, tokenizer: Tokenizer, prompt: str) -> str:
    """Raises InvalidRequestError for what is no grammar, and for models that know no calls."""
    writer = _Harmony if format.calls == HARMONY else _Tagged
    return writer(wanted, format, tokenizer).grammar(prompt)


class _Writer:
    def __init__(self, wanted: Wanted, format: AnswerFormat, tokenizer: Tokenizer) -> None:
        self.wanted, self.format, self.tokenizer = wanted, format, tokenizer
        self.rules = Rules()

    def mark(self, text: str) -> str:
        token_id = self.tokenizer.token_id(text)
        if token_id is None or not self.tokenizer.grammars.is_special(token_id):
            return quoted(text)
        return f"<[{token_id}]>"

    def content(self) -> str:
        return ANY_TEXT if self.wanted.content is None else self.wanted.content(self.rules)


class _Tagged(_Writer):
    """Reasoning in tags."""

    def grammar(self, prompt: str) -> str:
        answer = self.rules.add(self._answer())
        if self.format.reasoning is None:
            return self.rules.grammar(answer)
        (begin, end), shown = self.format.tags, prompt.rstrip()
        if shown.endswith(end):
            return self.rules.grammar(answer)
        mark = self.mark(end)
        thought = self.rules.ending(end) if mark == quoted(end) else self.rules.add(f"{ANY_TEXT} {mark}")
        blank = self.rules.add(r"/[ \n\r\t]{0,8}/")
        if shown.endswith(begin.rstrip()):
            return self.rules.grammar(f"{thought} {blank} {answer}")
        token = tag_token(begin)
        words = quoted(begin[len(token) :]) if begin != token else ""
        return self.rules.grammar(f"({self.mark(token)} {words} {thought} {blank})? {answer}")

    def _answer(self) -> str:
        wanted = self.wanted
        if not wanted.tools:
            return self.content()
        form = call_form(self.format.calls or "", self.tokenizer.chat_template)(self.rules, self.mark)
        if wanted.must_call or wanted.content is not None:
            calls = form.forced(wanted.tools, many=wanted.may_call_many)
            return calls if wanted.must_call else either([calls, self.rules.add(self.content())])
        return form.among_text(wanted.tools)


class _Harmony(_Writer):
    """Messages in channels; what the model thinks before its call or its last message is its own business."""

    def grammar(self, prompt: str) -> str:
        channel, message = self.mark(harmony.CHANNEL), self.mark(harmony.MESSAGE)
        json = f'(" "? {self.mark(harmony.CONSTRAIN)} "json")?'
        is_free = not self.wanted.must_call and self.wanted.content is None
        said = '("analysis" | "commentary")' if is_free else '"analysis"'  # the other is for the reader
        before = self.rules.add(
            f'{channel} {said} {message} {ANY_TEXT} {self.mark(harmony.END)} {self.mark(harmony.START)} "assistant"'
        )
        last = []
        for tool in self.wanted.tools:
            to = quoted(f" to=functions.{tool.name}")
            head = f'({channel} "commentary" {to} | {to} {channel} "commentary") {json} {message}'
            last.append(self.rules.add(f"{head} {tool.arguments} {self.mark(harmony.CALL)}"))
        if not self.wanted.must_call:
            last.append(self.rules.add(f'{channel} "final" {json} {message} {self.content()}'))
        return self.rules.grammar(f"{before}* {either(last)}")

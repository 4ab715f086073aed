"""A tool call as a grammar, and what all model families' have in common."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dualpath.grammar.lark import ANY_TEXT, Rules, json_value, quoted

Mark = Callable[[str], str]  # markup as it stands in a rule: text, or one special token


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    schema: Mapping[str, Any]  # of its arguments
    is_strict: bool

    @property
    def arguments(self) -> str:
        return json_value(self.schema, is_strict=self.is_strict)


class CallForm(ABC):
    """``opener`` and what comes behind it are a block; ``between`` stands between two of them, if there may be more."""

    opener: str
    between: str | None = None
    tokens: ClassVar[tuple[str, ...]] = ()  # what may be tokens of their own in ``shown``

    def __init__(self, rules: Rules, mark: Mark) -> None:
        self.rules, self.mark = rules, mark

    def shown(self, text: str) -> str:
        """The part of a rule that is this text: a special token, or text in which some of ``tokens`` are such."""
        if self.mark(text) != quoted(text):
            return self.mark(text)
        special = [re.escape(token) for token in self.tokens if self.mark(token) != quoted(token)]
        parts = re.split(f"({'|'.join(special)})", text) if special else [text]
        return " ".join(self.mark(part) for part in parts if part)

    def until(self, end: str) -> str:
        """Any text up to ``end``, which belongs to it."""
        shown = self.shown(end)
        return self.rules.ending(end) if shown == quoted(end) else self.rules.add(f"{self.rules.add(ANY_TEXT)} {shown}")

    @abstractmethod
    def behind(self, tools: Sequence[Tool], *, many: bool) -> str:
        """The part of a rule behind the opener."""

    def forced(self, tools: Sequence[Tool], *, many: bool) -> str:
        """Calls and nothing else."""
        block = self.rules.add(f"{self.shown(self.opener)} {self.behind(tools, many=many)}")
        if not many or self.between is None:
            return block
        return self.rules.add(f"{block} ({quoted(self.between) if self.between else ''} {block})*")

    def among_text(self, tools: Sequence[Tool]) -> str:
        """Any text, and calls wherever one is begun."""
        behind = self.rules.add(self.behind(tools, many=True))
        mark = self.shown(self.opener)
        text = self.rules.add(ANY_TEXT)
        if mark == quoted(self.opener):
            return self.rules.add(f"({self.rules.ending(self.opener)} {behind})* {text}")
        return self.rules.add(f"{text} ({mark} {behind} {text})*")


def members(must: Sequence[str], may: Sequence[str], separator: str) -> str:
    """The part of a rule that is a list of all of ``must``, then any of ``may`` in their order."""
    if must:
        return f" {separator} ".join(must) + "".join(f" ({separator} {one})?" for one in may)
    begun = [one + "".join(f" ({separator} {other})?" for other in may[i + 1 :]) for i, one in enumerate(may)]
    return f"({' | '.join(begun)})?" if begun else ""

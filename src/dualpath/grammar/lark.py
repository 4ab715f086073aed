"""Grammars as llguidance reads them: parts are checked one by one, and put together to the grammar of an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from dualpath.core.errors import InvalidRequestError
from dualpath.grammar.state import one_line

# Models that find no end write blanks for ever. What people indent by is less.
WHITESPACE = r"[ \n\r\t]{1,64}"
ANY_TEXT = "/(?s:.*)/"
_PLACE = re.compile(r"^(at \d+\(\d+\): )?(failed to compile JSON schema: )?")  # in a text that the client has not seen


@dataclass(slots=True)
class Rules:
    """Rules of one grammar, named as they come; ``start`` comes last."""

    _lines: list[str] = field(default_factory=list)
    _others: list[dict[str, str]] = field(default_factory=list)

    def add(self, body: str, options: str = "") -> str:
        """A rule's name; ``options`` as in ``lazy``."""
        name = f"r{len(self._lines)}"
        self._lines.append(f"{name}{f'[{options}]' if options else ''}: {body}")
        return name

    def ending(self, end: str) -> str:
        """Any text up to ``end``, which belongs to it and is not in it before."""
        return self.add(ANY_TEXT, f"suffix={quoted(end)}")

    def other(self, lark: str) -> str:
        """A whole grammar of its own, with rules of any names."""
        name = f"g{len(self._others)}"
        self._others.append({"name": name, "lark_grammar": lark})
        return f"@{name}"

    def grammar(self, start: str) -> str:
        lark = "\n".join([f"start: {start}", *self._lines])
        return json.dumps({"grammars": [{"name": "answer", "lark_grammar": lark}, *self._others]})


def quoted(text: str) -> str:
    """Text as it stands, in a rule."""
    return json.dumps(text)


def either(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"


def json_value(schema: object, *, is_strict: bool) -> str:
    """JSON that fits ``schema``. What of it cannot be held is an error where ``is_strict``, else left out.

    Raises InvalidRequestError.
    """
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise InvalidRequestError("a schema must be an object")
    try:
        known = {name: value for name, value in schema.items() if name != "$schema"}  # of any draft, read as the newest
        return "%json " + _held(json.dumps({**known, "x-guidance": {"whitespace_pattern": WHITESPACE}}), is_strict)
    except (RecursionError, ValueError) as error:
        raise InvalidRequestError("the schema is nested too deeply") from error


def parsed(schema: str) -> object:
    """A schema that came as text. Raises InvalidRequestError."""
    try:
        return json.loads(schema)
    except (RecursionError, ValueError) as error:
        raise InvalidRequestError(f"the schema is not valid JSON: {error}") from None


@lru_cache(maxsize=512)
def _held(schema: str, is_strict: bool) -> str:
    """``schema`` with options by which llguidance takes it."""
    is_error, found = LLMatcher.validate_grammar_with_warnings(_lark("start: %json " + schema))
    if not is_error:
        return schema
    lenient = _with_patterns_that_can_be_held(json.loads(schema), is_strict)
    lenient["x-guidance"]["lenient"] = True
    text = json.dumps(lenient)
    is_error, left_out = LLMatcher.validate_grammar_with_warnings(_lark("start: %json " + text))
    # A format that nobody knows is a remark, as JSON Schema has it.
    only_formats = all(message.startswith("Unknown format") for message in left_out)
    if is_error or (is_strict and not only_formats):
        told = found[0] if is_error else "; ".join(left_out)
        raise InvalidRequestError(one_line(_PLACE.sub("", told)))
    return text


def _with_patterns_that_can_be_held(schema: Any, is_strict: bool) -> Any:
    """Without those that look around, as zod writes them beside a ``format`` that says the same; others without a
    ``format`` go only where not ``is_strict``."""
    if isinstance(schema, list):
        return [_with_patterns_that_can_be_held(item, is_strict) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {name: _with_patterns_that_can_be_held(value, is_strict) for name, value in schema.items()}
    pattern = out.get("pattern")
    is_spare = not is_strict or isinstance(out.get("format"), str)
    if isinstance(pattern, str) and is_spare and LLMatcher.validate_grammar(LLMatcher.grammar_from_regex(pattern)):
        del out["pattern"]
    return out


def regex(pattern: str) -> str:
    """Text that matches as a whole."""
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and not pattern.endswith("\\$"):
        pattern = pattern[:-1]
    part = f"/{regex_to_lark(pattern)}/" if pattern else quoted("")
    _check("start: " + part)
    return part


def choice(options: Sequence[str]) -> str:
    if not options:
        raise InvalidRequestError("there must be something to choose from")
    return either([quoted(option) for option in options])


def grammar(text: str) -> str:
    """Lark's form, or GBNF's (``root ::= ...``), as Lark. Raises InvalidRequestError."""
    if "::=" in text:
        try:
            text = any_to_lark(text)
        except Exception as error:  # the converter raises whatever comes
            raise InvalidRequestError(one_line(str(error))) from error
    return text


def _check(lark: str) -> None:
    error = LLMatcher.validate_grammar(_lark(lark))
    if error:
        raise InvalidRequestError(one_line(error))


def _lark(text: str) -> str:
    return LLMatcher.grammar_from_lark(text)

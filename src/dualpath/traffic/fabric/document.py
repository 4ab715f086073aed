"""A rendered file: a head that says what it is, where and how to apply it and how to check it, then the content."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

_WIDTH = 100


def document(*, what: str, where: str, apply: str, check: str, body: Iterable[str], script: bool = False) -> str:
    """The text of a file whose comments begin with ``#``. ``script`` makes it one for bash that stops at an error."""
    lines = ["#!/usr/bin/env bash"] if script else []
    for label, text in (("", what), ("Where: ", where), ("Apply: ", apply), ("Check: ", check)):
        lines += textwrap.wrap(
            text,
            _WIDTH,
            initial_indent=f"# {label}",
            subsequent_indent="#" + " " * (len(label) + 1),
            break_on_hyphens=False,
            break_long_words=False,
        )
    lines += ["", *(["set -euo pipefail", ""] if script else []), *body]
    return "\n".join(lines) + "\n"


def comment(text: str) -> list[str]:
    """A comment inside a body."""
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH - 2, break_on_hyphens=False, break_long_words=False)]

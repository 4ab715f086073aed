"""How a command comes to be: what it can be told is a table, and its function gets an instance of that table."""

from __future__ import annotations

import argparse
import inspect
import shutil
from collections.abc import Callable, Collection, Mapping
from typing import Any

from dualpath.config.fields import Options
from dualpath.config.flags import add_flags, add_options, given_flags, read_options

Given = Mapping[tuple[str, str], Any]  # flags of a root that were on the command line, for ``load_config``


class _Formatter(argparse.HelpFormatter):
    """Fills paragraphs, but for those with indented lines, and gives long flags room."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=min(110, shutil.get_terminal_size().columns - 2))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        parts = text.split("\n\n")
        return "\n\n".join(part if "\n " in f"\n{part}" else fill(part, width, indent) for part in parts)


def add_group(verbs: Any, name: str, text: str, description: str | None = None) -> Any:
    """A verb that has commands of its own; they are added to what this returns."""
    parser = verbs.add_parser(name, help=text, description=description, formatter_class=_Formatter)
    return parser.add_subparsers(title="commands", dest="action", metavar="COMMAND", required=True)


def add_command(
    verbs: Any,
    name: str,
    text: str,
    run: Callable[..., int],
    options: type[Options] | None = None,
    *,
    root: type | None = None,
    hidden: Collection[str] = (),
    changed: Mapping[str, Mapping[str, Any]] | None = None,
    description: str | None = None,
    usage: str | None = None,
) -> None:
    """``run`` gets an instance of ``options``, whose docstring is the description, then what was given of ``root``."""
    description = description or inspect.getdoc(options)
    parser = verbs.add_parser(name, help=text, description=description, formatter_class=_Formatter)
    if options is not None:
        add_options(parser, options)
    if root is not None:
        add_flags(parser, root, hidden=hidden, changed=changed)
        usage = usage or f"{parser.prog} [options]"  # there are too many to list
    parser.usage = usage

    def call(arguments: argparse.Namespace) -> int:
        told: list[Any] = [] if options is None else [read_options(arguments, options)]
        return run(*told, *([] if root is None else [given_flags(arguments, root)]))

    parser.set_defaults(run=call)

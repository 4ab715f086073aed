"""Every command's flags are as the files in tests/cli/flags say: a flag that comes, goes or changes is a decision.

``DUALPATH_WRITE_FLAGS=1 pytest tests/cli/test_flags.py`` writes them anew, for a person to look at.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from dualpath import cli
from dualpath.cli.main import build_parser

FLAGS = Path(__file__).parent / "flags"


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Those that do something, depth first."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield parser
    for action in below:
        for command in dict.fromkeys(action.choices.values()):
            yield from commands(command)


def described(command: argparse.ArgumentParser) -> str:
    """What ``--help`` says, without what depends on the terminal and on Python's version."""
    lines = [command.prog, " ".join((command.description or "").split())]
    for group in command._action_groups:
        own = [action for action in group._group_actions if "--help" not in action.option_strings]
        if own:
            lines += ["", f"[{group.title}] {group.description or ''}".rstrip()]
        for action in own:
            text = command._get_formatter()._expand_help(action) if action.help else ""
            lines.append(" | ".join([_form(action), " ".join(text.split())]).rstrip(" |"))
    return "\n".join(lines) + "\n"


def _form(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings) or action.dest
    values = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    if action.choices is not None:
        values = "{" + ",".join(map(str, action.choices)) + "}"
    many = f" nargs={action.nargs}" if action.nargs not in (None, 0) else ""
    required = " required" if action.required and action.option_strings else ""
    return f"{names} {values}".rstrip() + many + required


with patch("os.cpu_count", return_value=2):  # some defaults are a share of it
    COMMANDS = {command.prog.removeprefix("dualpath "): command for command in commands(build_parser())}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_flags_of_a_command_are_frozen(name: str) -> None:
    file, text = FLAGS / f"{name.replace(' ', '-')}.txt", described(COMMANDS[name])
    if os.environ.get("DUALPATH_WRITE_FLAGS"):
        FLAGS.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


def test_every_file_is_of_a_command() -> None:
    assert {file.stem for file in FLAGS.iterdir()} == {name.replace(" ", "-") for name in COMMANDS}


def test_no_command_adds_a_flag_by_hand() -> None:
    """Else its help, default and checks would be written a second time, in other words."""
    sources = {file.name: file.read_text(encoding="utf-8") for file in Path(cli.__file__).parent.rglob("*.py")}
    assert [name for name, source in sources.items() if "add_argument" in source] == ["main.py"]  # --version
    assert sources["main.py"].count("add_argument") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_does_and_what_each_flag_means(name: str) -> None:
    command = COMMANDS[name]
    assert command.description or name == "version"
    assert all(action.help for action in command._actions)

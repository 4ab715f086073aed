"""A command's options: flags, arguments and their checks come from a table that no file has."""

from __future__ import annotations

import argparse
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from dualpath.config.fields import Address, Options, setting
from dualpath.config.flags import add_options, read_options
from dualpath.core.errors import ConfigError


class Everything(Options):
    """One of each kind."""

    source: Path = setting(positional=True, metavar="IN", help="what is read")
    words: tuple[str, ...] = setting((), many="words", help="several after one flag")
    counts: tuple[int, ...] = setting((1, 2), minimum=1, many="commas", help="several in one word")
    staging_bytes: tuple[int, ...] = setting((80 * 10**9,), many="commas", help="sizes")
    to: tuple[str, ...] = setting((), help="a flag each")
    is_dry: bool = setting(False, help="only say")
    near: str | None = setting(None, alone="here", none_means="nowhere", help="may have a value")
    master: Address | None = setting(None, help="where somebody listens")
    wait_s: float = setting(1.5, above=0, help="waits")


def parsed(*words: str) -> Everything:
    parser = argparse.ArgumentParser()
    add_options(parser, Everything)
    return read_options(parser.parse_args(words), Everything)


def test_what_nobody_says_is_the_tables() -> None:
    assert parsed("in") == Everything(source=Path("in"))


def test_every_form_of_an_option() -> None:
    found = parsed(
        *("in", "--words", "a", "b", "--counts", "3, 4,", "--staging-bytes", "1TiB,2GB", "--to", "x", "--to", "y"),
        *("--is-dry", "--master", "[::1]:80", "--wait-s", "2", "--near"),
    )
    assert found == Everything(
        source=Path("in"),
        words=("a", "b"),
        counts=(3, 4),
        staging_bytes=(2**40, 2 * 10**9),
        to=("x", "y"),
        is_dry=True,
        near="here",
        master=Address("[::1]", 80),
        wait_s=2.0,
    )
    assert parsed("in", "--near", "there").near == "there"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([" "], "IN: must not be empty"),
        (["in", "--counts", "1,x"], "--counts: must be a whole number, not 'x'"),
        (["in", "--counts", "1,0"], "--counts: must be at least 1, not 0"),
        (["in", "--counts", ","], "--counts: must be a whole number, not ','"),
        (["in", "--staging-bytes", "many"], "--staging-bytes: must be a number of bytes"),
        (["in", "--master", "a"], "--master: must be HOST:PORT, not 'a'"),
        (["in", "--master", ":1"], "--master: must be HOST:PORT, not ':1'"),
        (["in", "--master", "a:65536"], "--master: must be HOST:PORT, not 'a:65536'"),
        (["in", "--wait-s", "nan"], "--wait-s: must be a finite number, not nan"),
        (["in", "--wait-s", "0"], "--wait-s: must be more than 0, not 0.0"),
    ],
)
def test_a_mistake_names_the_flag_and_the_value(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parsed(*words)
    assert str(raised.value).startswith(reason)


def test_a_table_without_a_name_checks_itself_too() -> None:
    with pytest.raises(ConfigError, match=r"^--wait-s: must be more than 0, not -1$"):
        Everything(source=Path("in"), wait_s=-1)
    with pytest.raises(FrozenInstanceError):
        Everything(source=Path("in")).wait_s = 2  # type: ignore[misc]


def test_the_help_has_what_is_assumed_and_the_usage_what_is_required() -> None:
    parser = argparse.ArgumentParser(prog="p")
    add_options(parser, Everything)
    text = " ".join(parser.format_help().split())
    for fragment in (
        "[--counts N,...]",
        "[--near [TEXT]]",
        "[--is-dry]",
        "[--master HOST:PORT]",
        "[--words TEXT [TEXT ...]]",
        "IN what is read",
        "(default: 1,2)",
        "(default: 80GB)",
        "(default: nowhere)",
        "waits (default: 1.5)",
    ):
        assert fragment in text

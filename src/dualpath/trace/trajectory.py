"""A trajectory is one agent's conversation by lengths: what each round appends, what it generates, how long it thinks.

The rule of replay (paper, section 5): round i's prompt is every earlier append and generation plus the new append, and
exactly ``generate_tokens`` tokens are generated. The first round's append is the first prompt.

On disk JSONL, one trajectory a line:

    {"id": "a7", "rounds": [{"append_tokens": 3900, "generate_tokens": 150, "think_s": 0.0}, ...],
     "prefix": {"tool_tokens": 2000, "system_tokens": 900, "group": "coder/v2"}, "start_s": 12.5, "parent": "a1"}

``think_s``, ``prefix``, ``start_s`` and ``parent`` may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from dualpath.core.errors import ConfigError
from dualpath.trace import fields as check


@dataclass(frozen=True, slots=True)
class Round:
    append_tokens: int  # new in the prompt: a user's message or a tool's result; at least 1
    generate_tokens: int  # exactly as many are generated; at least 1
    think_s: float = 0.0  # from the answer to the round before until this one is sent

    def __post_init__(self) -> None:
        if self.append_tokens < 1 or self.generate_tokens < 1 or not 0 <= self.think_s < float("inf"):
            raise ConfigError(f"a round needs at least 1 token to append and to generate, and a finite wait: {self}")


@dataclass(frozen=True, slots=True)
class Prefix:
    """How the first prompt begins: tools, then system prompt; what is shared is equal token for token.

    ``group`` names the content. The tools belong to the group's part before the first "/": "coder/v1" and "coder/v2"
    share their tools but not their system prompts.
    """

    tool_tokens: int
    system_tokens: int
    group: str

    def __post_init__(self) -> None:
        if self.tool_tokens < 0 or self.system_tokens < 0 or not self.group:
            raise ConfigError(f"a prefix needs a group and lengths of at least 0: {self}")

    @property
    def num_tokens(self) -> int:
        return self.tool_tokens + self.system_tokens


@dataclass(frozen=True, slots=True)
class Trajectory:
    id: str
    rounds: tuple[Round, ...]
    prefix: Prefix | None = None
    start_s: float = 0.0  # when the recording saw the first round, since its own start; for replays in real time
    parent: str | None = None  # whose subagent this is, or whose context was compacted into it; replay may ignore it

    def __post_init__(self) -> None:
        if not self.id or not self.rounds:
            raise ConfigError("a trajectory needs an id and at least one round")
        if self.prefix and self.prefix.num_tokens > self.rounds[0].append_tokens:
            raise ConfigError(
                f"the prefix's {self.prefix.num_tokens} tokens do not fit the first round's append_tokens"
                f" ({self.rounds[0].append_tokens})"
            )

    @property
    def total_tokens(self) -> int:
        """The context at the end: everything appended and generated."""
        return sum(one.append_tokens + one.generate_tokens for one in self.rounds)

    @property
    def prompt_lengths(self) -> list[int]:
        """Tokens of each round's whole prompt."""
        ends = accumulate(one.append_tokens + one.generate_tokens for one in self.rounds)
        return [end - one.generate_tokens for end, one in zip(ends, self.rounds, strict=True)]


def read_trajectories(path: Path | str) -> list[Trajectory]:
    """All of a file, in its order. What is wrong is reported as ``file:line: reason``."""
    found: dict[str, Trajectory] = {}
    for number, line in numbered_lines(Path(path)):
        try:
            one = parse_trajectory(check.parse_object(line))
            if one.id in found:
                raise ConfigError(f"the id {one.id!r} is there twice")
        except ConfigError as error:
            raise ConfigError(f"{path}:{number}: {error}") from None
        found[one.id] = one
    if not found:
        raise ConfigError(f"{path}: no trajectories")
    return list(found.values())


def write_trajectories(path: Path | str, trajectories: Iterable[Trajectory]) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(dump_trajectory(one), separators=(",", ":")) + "\n" for one in trajectories)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, counted from 1."""
    try:
        with open(path, encoding="utf-8") as file:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None


def parse_trajectory(fields: dict[str, Any]) -> Trajectory:
    check.only(fields, ("id", "rounds", "prefix", "start_s", "parent"))
    return Trajectory(
        id=check.text(fields, "id"),
        rounds=tuple(_parse_round(number, one) for number, one in enumerate(check.array(fields, "rounds"))),
        prefix=_parse_prefix(fields["prefix"]) if fields.get("prefix") is not None else None,
        start_s=check.seconds(fields, "start_s"),
        parent=check.text(fields, "parent") if fields.get("parent") is not None else None,
    )


def dump_trajectory(one: Trajectory) -> dict[str, Any]:
    """The JSON object of one line; what has its default value is left out."""
    found: dict[str, Any] = {"id": one.id}
    if one.start_s:
        found["start_s"] = one.start_s
    if one.parent is not None:
        found["parent"] = one.parent
    if one.prefix is not None:
        prefix = one.prefix
        found["prefix"] = {
            "tool_tokens": prefix.tool_tokens,
            "system_tokens": prefix.system_tokens,
            "group": prefix.group,
        }
    found["rounds"] = [
        {"append_tokens": r.append_tokens, "generate_tokens": r.generate_tokens, "think_s": r.think_s}
        for r in one.rounds
    ]
    return found


def _parse_round(number: int, value: object) -> Round:
    try:
        fields = check.as_object(value, "a round")
        check.only(fields, ("append_tokens", "generate_tokens", "think_s"))
        return Round(
            append_tokens=check.integer(fields, "append_tokens", least=1),
            generate_tokens=check.integer(fields, "generate_tokens", least=1),
            think_s=check.seconds(fields, "think_s"),
        )
    except ConfigError as error:
        raise ConfigError(f"rounds[{number}]: {error}") from None


def _parse_prefix(value: object) -> Prefix:
    try:
        fields = check.as_object(value, "prefix")
        check.only(fields, ("tool_tokens", "system_tokens", "group"))
        return Prefix(
            tool_tokens=check.integer(fields, "tool_tokens", least=0),
            system_tokens=check.integer(fields, "system_tokens", least=0),
            group=check.text(fields, "group"),
        )
    except ConfigError as error:
        raise ConfigError(f"prefix: {error}") from None

"""What a reader gives: trajectories, and the block ids that the recording names itself, to check them against."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dualpath.core.errors import ConfigError
from dualpath.trace.hits import unique_block_rate
from dualpath.trace.trajectory import Round, Trajectory

BlockName = tuple[str | int, ...]  # equal in two requests where the recording says that the KV is the same


@dataclass(frozen=True, slots=True)
class Recording:
    trajectories: tuple[Trajectory, ...]
    requests: tuple[list[BlockName], ...] = ()  # blocks of each request; empty: the format names none
    block_tokens: int | None = None  # of those blocks

    @property
    def block_rate(self) -> float | None:
        """Share of blocks that an infinite cache hits, by the recording's own names; None where it has none."""
        return unique_block_rate(self.requests) if self.requests else None


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded request that belongs to a conversation."""

    prompt_tokens: int
    generate_tokens: int
    think_s: float  # before it


def rounds_of(calls: Iterable[Call]) -> tuple[Round, ...]:
    """Rounds whose prompts have the recorded lengths.

    A prompt may be shorter than what was said before it: thinking is generated but not always sent back. Such a round
    appends 1 token, and later appends are cut until the lengths agree again.
    """
    context, rounds = 0, []
    for call in calls:
        append = max(1, call.prompt_tokens - context)
        rounds.append(Round(append, max(1, call.generate_tokens), call.think_s))
        context += append + rounds[-1].generate_tokens
    return tuple(rounds)


Source = TypeVar("Source")
Parsed = TypeVar("Parsed")


def located(where: Path | str, parse: Callable[[Source], Parsed], source: Source) -> Parsed:
    """``parse(source)``; what it finds wrong is reported with the place in front."""
    try:
        return parse(source)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None

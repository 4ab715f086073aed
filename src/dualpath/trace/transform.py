"""Make a trace fit the machine: shorter, quicker, fewer rounds, or more agents than were recorded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from dualpath.core.errors import ConfigError
from dualpath.trace.trajectory import Prefix, Round, Trajectory


def scale(trajectories: Iterable[Trajectory], factor: float) -> list[Trajectory]:
    """Every length times ``factor``, at least 1 token each: a small machine replays the shape of a long trace.

    Rounding is carried from round to round, so a trajectory's sums scale exactly until its rounds reach 1 token.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise ConfigError(f"scale: must be a finite number above 0, not {factor}")
    return list(trajectories) if factor == 1 else [_scaled(one, factor) for one in trajectories]


def think_scale(trajectories: Iterable[Trajectory], factor: float) -> list[Trajectory]:
    """Every wait, and the start times with them, times ``factor``; 0 is the paper's replay, without waits."""
    if not (math.isfinite(factor) and factor >= 0):
        raise ConfigError(f"think scale: must be a finite number of at least 0, not {factor}")
    return [
        replace(
            one,
            rounds=tuple(replace(turn, think_s=turn.think_s * factor) for turn in one.rounds),
            start_s=one.start_s * factor,
        )
        for one in trajectories
    ]


def limit_rounds(trajectories: Iterable[Trajectory], num_rounds: int) -> list[Trajectory]:
    """The first ``num_rounds`` of each."""
    if num_rounds < 1:
        raise ConfigError(f"rounds: must be at least 1, not {num_rounds}")
    return [replace(one, rounds=one.rounds[:num_rounds]) for one in trajectories]


def resample(trajectories: Sequence[Trajectory], num_agents: int, seed: int) -> list[Trajectory]:
    """Exactly ``num_agents``: a sample in the trace's order, or all of them and copies.

    A copy is the paper's (section 5): one of the trajectories with a random first round before it that generates one
    token. Its tokens come before the old first prompt, so a copy shares no prefix with anybody. The new append is as
    long as some append in the trace.
    """
    if not trajectories:
        raise ConfigError("there are no trajectories to take agents from")
    if num_agents < 1:
        raise ConfigError(f"agents: must be at least 1, not {num_agents}")
    rng = np.random.default_rng(check_seed(seed))
    if num_agents <= len(trajectories):
        chosen = np.sort(rng.choice(len(trajectories), num_agents, replace=False))
        return [trajectories[index] for index in chosen.tolist()]
    taken = {one.id for one in trajectories}
    copies = [_copy(trajectories, number, taken, rng) for number in range(num_agents - len(trajectories))]
    return [*trajectories, *copies]


def check_seed(seed: int) -> int:
    if seed < 0:
        raise ConfigError(f"seed: must be at least 0, not {seed}")
    return seed


def _copy(trajectories: Sequence[Trajectory], number: int, taken: set[str], rng: np.random.Generator) -> Trajectory:
    source = trajectories[int(rng.integers(len(trajectories)))]
    lender = trajectories[int(rng.integers(len(trajectories)))]
    first = Round(_any_later_append(lender, rng), generate_tokens=1)
    name = f"{source.id}~{number}"
    while name in taken:  # the trace may itself be the result of resampling
        name += "~"
    taken.add(name)
    return replace(source, id=name, rounds=(first, *source.rounds), prefix=None)


def _any_later_append(one: Trajectory, rng: np.random.Generator) -> int:
    """Not the first prompt, where there is another."""
    rounds = one.rounds[1:] or one.rounds
    return rounds[int(rng.integers(len(rounds)))].append_tokens


def _scaled(one: Trajectory, factor: float) -> Trajectory:
    appends = _scaled_lengths([turn.append_tokens for turn in one.rounds], factor)
    gens = _scaled_lengths([turn.generate_tokens for turn in one.rounds], factor)
    rounds = tuple(
        replace(turn, append_tokens=append, generate_tokens=gen)
        for turn, append, gen in zip(one.rounds, appends, gens, strict=True)
    )
    prefix = one.prefix and _scaled_prefix(one.prefix, factor, at_most=appends[0])
    return replace(one, rounds=rounds, prefix=prefix)


def _scaled_lengths(lengths: Sequence[int], factor: float) -> list[int]:
    wanted, given, found = 0.0, 0, []
    for length in lengths:
        wanted += length * factor
        found.append(max(1, round(wanted - given)))
        given += found[-1]
    return found


def _scaled_prefix(prefix: Prefix, factor: float, *, at_most: int) -> Prefix:
    tools = min(round(prefix.tool_tokens * factor), at_most)
    system = min(round(prefix.system_tokens * factor), at_most - tools)
    return replace(prefix, tool_tokens=tools, system_tokens=system)

"""Trajectories from four means, for a user who has no trace: turns, append, generate, context."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dualpath.core.errors import ConfigError
from dualpath.trace.synth import APPEND_SIGMA, GENERATE_SIGMA
from dualpath.trace.trajectory import Round, Trajectory

MAX_TURNS, MAX_TOKENS = 100_000, 1e9


@dataclass(frozen=True, slots=True)
class TurnStatistics:
    """Means over requests, in tokens; lengths vary as in ``trace.synth``, lognormal with its sigmas."""

    turns: int
    append_tokens: float
    generate_tokens: float
    context_tokens: float | None = None  # mean prompt; None: the first prompt is an append like the others

    def __post_init__(self) -> None:
        for name in ("turns", "append_tokens", "generate_tokens"):
            value, most = getattr(self, name), MAX_TURNS if name == "turns" else MAX_TOKENS
            if not 1 <= value <= most:
                raise ConfigError(f"{name}: must be from 1 to {most:g}, not {value:g}")
        if self.context_tokens is not None and not self.context_tokens <= MAX_TOKENS:
            raise ConfigError(f"context_tokens: must be at most {MAX_TOKENS:g}, not {self.context_tokens:g}")
        if self.context_tokens is not None and self.first_prompt_tokens < 1:
            least = self._grown_tokens + 1
            raise ConfigError(
                f"context_tokens: {self.turns} turns of {self.append_tokens:g} + {self.generate_tokens:g} tokens have"
                f" a mean prompt of at least {least:g}, not {self.context_tokens:g}"
            )

    @property
    def _grown_tokens(self) -> float:
        """Mean over turns of what earlier turns added: prompt i is the first prompt and i times append + generate."""
        return (self.turns - 1) / 2 * (self.append_tokens + self.generate_tokens)

    @property
    def first_prompt_tokens(self) -> float:
        """With which the mean prompt is ``context_tokens``."""
        return self.append_tokens if self.context_tokens is None else self.context_tokens - self._grown_tokens


def make_trajectories(wanted: TurnStatistics, num_agents: int, seed: int) -> list[Trajectory]:
    """Every trajectory's own lengths come as near to the means as whole tokens allow."""
    found = []
    for index in range(num_agents):
        rng = np.random.default_rng((seed, index))
        appends = _lengths(wanted.append_tokens, APPEND_SIGMA, wanted.turns, rng)
        gens = _lengths(wanted.generate_tokens, GENERATE_SIGMA, wanted.turns, rng)
        appends[0] = max(1, round(wanted.first_prompt_tokens))
        rounds = tuple(Round(append, generate) for append, generate in zip(appends, gens, strict=True))
        found.append(Trajectory(f"statistics-{index:03}", rounds))
    return found


def _lengths(mean_tokens: float, sigma: float, count: int, rng: np.random.Generator) -> list[int]:
    """Lognormal, at most ten means each, scaled to the mean."""
    factors = np.minimum(np.exp(sigma * rng.standard_normal(count)), 10 * math.exp(sigma**2 / 2))
    lengths = np.rint(factors / factors.mean() * mean_tokens).astype(np.int64)
    return [max(1, length) for length in lengths.tolist()]

"""Synthetic agents with the shape of the paper's traces (Table 2): 32K, 48K and 64K tokens of context at most.

The paper's traces are not public; their means are. One model meets all five columns of the three of them:

* a trajectory's mean turn is lognormal over trajectories, which explains why the table's columns do not multiply out
  (``stats``); within it, appends are lognormal with sigma 1.2 and generations with sigma 0.8, and no append
  is more than a quarter of the limit;
* the first prompt is 3.3 to 4.7 thousand tokens;
* most end when the next turn would pass the limit; a fifth to a quarter end early, anywhere from 15 % of it on; none
  has more than 500 turns.

What differs between trajectories (mean turn, first prompt, end) is taken from an evenly spread sequence with a random
shift, not from independent draws: so few agents, and any seed, still come near the table's means. Of 500
agents, seed 0 meets every column within 2 %; over seeds 0-59 and all three, 171 of 180 traces are within 5 % and the
worst within 8 %. Trajectory i is the same one however many are made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from dualpath.core.errors import ConfigError
from dualpath.trace.stats import Columns
from dualpath.trace.trajectory import Round, Trajectory
from dualpath.trace.transform import check_seed

PAPER_TRAJECTORIES = 500
MAX_TURNS = 500
APPEND_SIGMA, GENERATE_SIGMA = 1.2, 0.8
MAX_DEVIATION = 2.5  # of a trajectory's mean turn, in sigmas: one agent in 80 is pulled in, and no seed is all outlier
LARGEST_APPEND = 4  # at most 1/4 of the limit: one result that fills a whole context would move the table's mean
FIRST_PROMPT_SPREAD = 0.15  # first prompts are uniform within this share of the mean, both ways
EARLIEST_END = 0.15  # of the limit
MAX_AGENTS = 1_000_000

# Fractional parts of i * STEPS fill the unit cube evenly: powers of the root of x^4 = x + 1 (the R3 sequence).
_ROOT = 1.2207440846057596
STEPS = np.array([1 / _ROOT, 1 / _ROOT**2, 1 / _ROOT**3])


@dataclass(frozen=True, slots=True)
class Shape:
    """Parameters fitted to a row of Table 2, and that row."""

    limit_tokens: int
    median_turn_tokens: float  # append + generate, over trajectories
    turn_sigma: float
    append_share: float  # of a mean turn
    early_share: float  # of trajectories that end before the limit
    first_prompt_tokens: float
    table: Columns


SHAPES = {
    "32K": Shape(32 * 1024, 533.9, 0.6413, 0.7747, 0.2217, 3894.0, Columns(60, 608, 148, 28639, 17183)),
    "48K": Shape(48 * 1024, 461.4, 0.6684, 0.7010, 0.2432, 4100.0, Columns(106, 474, 172, 42607, 25120)),
    "64K": Shape(64 * 1024, 428.1, 0.7419, 0.6860, 0.2571, 4100.0, Columns(157, 429, 176, 55958, 32721)),
}


def synthesize(shape: str, *, num_agents: int = PAPER_TRAJECTORIES, seed: int = 0) -> list[Trajectory]:
    """``shape``: one of SHAPES. All rounds come without waits, as in the paper's replay."""
    if shape not in SHAPES:
        raise ConfigError(f"no synthetic trace {shape!r}: there are {', '.join(SHAPES)}")
    if not 1 <= num_agents <= MAX_AGENTS:
        raise ConfigError(f"agents: must be from 1 to {MAX_AGENTS}, not {num_agents}")
    shift = np.random.default_rng(check_seed(seed)).random(len(STEPS))
    width = len(str(max(num_agents, PAPER_TRAJECTORIES) - 1))
    found = []
    for index in range(num_agents):
        place = (shift + index * STEPS) % 1.0
        rng = np.random.default_rng((seed, index))
        found.append(Trajectory(f"{shape}-{index:0{width}}", _rounds(SHAPES[shape], place, rng)))
    return found


def _rounds(shape: Shape, place: npt.NDArray[np.float64], rng: np.random.Generator) -> tuple[Round, ...]:
    turn_place, end_place, first_place = place.tolist()
    deviation = NormalDist().inv_cdf(min(max(turn_place, 1e-9), 1 - 1e-9))
    deviation = min(max(deviation, -MAX_DEVIATION), MAX_DEVIATION)
    turn_tokens = shape.median_turn_tokens * math.exp(shape.turn_sigma * deviation)
    appends = _lengths(turn_tokens * shape.append_share, APPEND_SIGMA, rng)
    gens = _lengths(turn_tokens * (1 - shape.append_share), GENERATE_SIGMA, rng)
    spread = FIRST_PROMPT_SPREAD * (2 * first_place - 1)
    appends = np.minimum(appends, shape.limit_tokens // LARGEST_APPEND)
    appends[0] = round(shape.first_prompt_tokens * (1 + spread))
    end_tokens = shape.limit_tokens * _end_share(shape.early_share, end_place)
    num_rounds = max(1, int((np.cumsum(appends + gens) <= end_tokens).sum()))
    pairs = zip(appends[:num_rounds].tolist(), gens[:num_rounds].tolist(), strict=True)
    return tuple(Round(append, generate) for append, generate in pairs)


def _end_share(early_share: float, end_place: float) -> float:
    """Where of the limit a trajectory ends."""
    if end_place >= early_share:
        return 1.0
    return EARLIEST_END + (1 - EARLIEST_END) * end_place / early_share


def _lengths(mean_tokens: float, sigma: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """MAX_TURNS lengths, lognormal around the mean."""
    factors = np.exp(sigma * rng.standard_normal(MAX_TURNS) - sigma**2 / 2)
    return np.maximum(1, np.rint(mean_tokens * factors)).astype(np.int64)

"""What a trace looks like: the columns of the paper's Table 2, and the same things counted per request.

Conventions. The table's columns do not multiply out (157 turns of 429 + 176 tokens are not 55,958) unless append and
generate are averages over trajectories of each one's own mean: short trajectories with large turns then count as
much as long ones with small turns. So here, in the table's columns:

* turns, total: means over trajectories; total is the context at the end, everything appended and generated;
* append, gen: mean over trajectories of the trajectory's mean round. The first prompt is the first round's append;
* context: mean over *requests* of the whole prompt's length.

A server sees requests, not trajectories: ``request_append`` and ``request_gen`` are the means over all requests, what
the compute per request follows from; in the paper's traces they are about 0.6 times the table's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from dualpath.core.errors import ConfigError
from dualpath.trace.hits import CacheHits, infinite_cache_hits
from dualpath.trace.trajectory import Round, Trajectory


@dataclass(frozen=True, slots=True)
class Columns:
    """One row of the table."""

    turns: float
    append_tokens: float
    generate_tokens: float
    total_tokens: float
    context_tokens: float


@dataclass(frozen=True, slots=True)
class TraceStats:
    num_trajectories: int
    num_requests: int
    paper: Columns  # means, by the table's conventions
    medians: Columns  # turns, total: over trajectories; append, gen, context: over requests
    request_append_tokens: float
    request_generate_tokens: float
    first_prompt_tokens: float
    longest_context_tokens: int  # what a server must be able to hold
    think_s: float  # mean over requests
    hits: CacheHits
    block_tokens: int
    recorded_block_rate: float | None = None  # by the recording's own block ids; None: it has none

    def to_json(self) -> dict[str, Any]:
        rates = {"block_rate": self.hits.block_rate, "token_rate": self.hits.token_rate}
        return asdict(self) | {"hits": asdict(self.hits) | rates}


def describe(
    trajectories: Sequence[Trajectory], *, block_tokens: int = 64, recorded_block_rate: float | None = None
) -> TraceStats:
    if not trajectories:
        raise ConfigError("there are no trajectories to describe")
    requests = [one for trajectory in trajectories for one in trajectory.rounds]
    contexts = [length for one in trajectories for length in one.prompt_lengths]
    totals = [one.total_tokens for one in trajectories]
    turns = [len(one.rounds) for one in trajectories]
    appends, gens = [one.append_tokens for one in requests], [one.generate_tokens for one in requests]
    return TraceStats(
        num_trajectories=len(trajectories),
        num_requests=len(requests),
        paper=Columns(
            turns=fmean(turns),
            append_tokens=fmean(_mean_append(one.rounds) for one in trajectories),
            generate_tokens=fmean(_mean_generate(one.rounds) for one in trajectories),
            total_tokens=fmean(totals),
            context_tokens=fmean(contexts),
        ),
        medians=Columns(median(turns), median(appends), median(gens), median(totals), median(contexts)),
        request_append_tokens=fmean(appends),
        request_generate_tokens=fmean(gens),
        first_prompt_tokens=fmean(one.rounds[0].append_tokens for one in trajectories),
        longest_context_tokens=max(totals),
        think_s=fmean(one.think_s for one in requests),
        hits=infinite_cache_hits(trajectories, block_tokens=block_tokens),
        block_tokens=block_tokens,
        recorded_block_rate=recorded_block_rate,
    )


def format_table(stats: TraceStats) -> str:
    """For a terminal."""
    by_request = Columns(
        stats.num_requests / stats.num_trajectories,
        stats.request_append_tokens,
        stats.request_generate_tokens,
        stats.paper.total_tokens,
        stats.paper.context_tokens,
    )
    rows = [("paper's means", stats.paper), ("request means", by_request), ("medians", stats.medians)]
    head = f"{'':14}{'turns':>9}{'append':>9}{'gen':>9}{'total':>10}{'context':>10}"
    lines = [f"{stats.num_trajectories} trajectories, {stats.num_requests} requests", head]
    for name, row in rows:
        lines.append(
            f"{name:14}{row.turns:>9.1f}{row.append_tokens:>9.1f}{row.generate_tokens:>9.1f}"
            f"{row.total_tokens:>10.0f}{row.context_tokens:>10.0f}"
        )
    lines.append(
        f"first prompt {stats.first_prompt_tokens:.0f}, longest context {stats.longest_context_tokens} tokens,"
        f" mean wait before a request {stats.think_s:.1f} s"
    )
    hits = stats.hits
    lines.append(
        f"infinite cache: {hits.block_rate:.1%} of blocks of {stats.block_tokens} tokens,"
        f" {hits.token_rate:.1%} of tokens"
    )
    if stats.recorded_block_rate is not None:
        lines.append(f"by the recording's own block ids: {stats.recorded_block_rate:.1%} of blocks")
    return "\n".join(lines)


def _mean_append(rounds: Sequence[Round]) -> float:
    return fmean(one.append_tokens for one in rounds)


def _mean_generate(rounds: Sequence[Round]) -> float:
    return fmean(one.generate_tokens for one in rounds)

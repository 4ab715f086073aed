"""One string names a trace: a file, a directory of files, or ``synth:64K``; what a benchmark's ``--trace`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dualpath.core.errors import ConfigError
from dualpath.trace.read import read_trace
from dualpath.trace.synth import PAPER_TRAJECTORIES, synthesize
from dualpath.trace.trajectory import Trajectory
from dualpath.trace.transform import check_seed, limit_rounds, resample, think_scale
from dualpath.trace.transform import scale as scale_lengths

SYNTH_SCHEME = "synth:"


def load_trace(
    source: str,
    *,
    agents: int | None = None,
    rounds: int | None = None,
    scale: float = 1.0,
    think: float = 1.0,
    seed: int = 0,
) -> list[Trajectory]:
    """``agents`` trajectories (None: all there are, of a synthetic trace 500), each cut to ``rounds`` rounds, their
    lengths times ``scale``, their waits times ``think``. The same arguments give the same trajectories."""
    check_seed(seed)
    if agents is not None and agents < 1:
        raise ConfigError(f"agents: must be at least 1, not {agents}")
    found = _source(source, agents, seed)
    if agents is not None:
        found = resample(found, agents, seed) if agents != len(found) else list(found)
    if rounds is not None:
        found = limit_rounds(found, rounds)
    return think_scale(scale_lengths(found, scale), think)


def _source(source: str, agents: int | None, seed: int) -> Sequence[Trajectory]:
    """A synthetic trace is made with the number of agents wanted, so that few agents still represent its shape."""
    if not source.startswith(SYNTH_SCHEME):
        return read_trace(Path(source)).trajectories
    num_agents = PAPER_TRAJECTORIES if agents is None else min(agents, PAPER_TRAJECTORIES)
    return synthesize(source.removeprefix(SYNTH_SCHEME), num_agents=num_agents, seed=seed)

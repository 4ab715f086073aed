"""From a workload's spec to agents: their rounds, and when they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dualpath.core.errors import ConfigError
from dualpath.sim.requests.agent import Agent
from dualpath.sim.spec import MAX_AGENTS, WorkloadSpec
from dualpath.trace.arrivals import arrival_times_s
from dualpath.trace.load import load_trace
from dualpath.trace.synth import PAPER_TRAJECTORIES
from dualpath.trace.trajectory import Trajectory
from dualpath.trace.transform import limit_rounds, resample


def load_trajectories(spec: WorkloadSpec) -> list[Trajectory]:
    """One for each agent, as ``load_trace`` gives them; copies share their rounds: many agents fit."""
    num_agents = spec.agents if spec.aps is None else len(arrivals(spec))
    most = num_agents if num_agents <= PAPER_TRAJECTORIES else None
    try:
        found = load_trace(spec.trace, agents=most, scale=spec.scale, think=spec.think, seed=spec.seed)
    except ConfigError as error:
        raise ConfigError(f"[workload] trace: {error}") from error
    if spec.append_scale != 1 or spec.generate_scale != 1:
        found = [_reshaped(one, spec.append_scale, spec.generate_scale) for one in found]
    if len(found) != num_agents:
        found = resample(found, num_agents, spec.seed)
    return found if spec.rounds is None else limit_rounds(found, spec.rounds)


def arrivals(spec: WorkloadSpec) -> Sequence[float]:
    """When each agent comes: all at once, or as a Poisson process until the measurement ends."""
    if spec.aps is None:
        return [0.0] * spec.agents
    end_s = spec.warm_up_s + spec.duration_s
    if not 1 <= spec.aps * end_s <= MAX_AGENTS:
        raise ConfigError(
            f"[workload] aps: {spec.aps:g} agents per second for {end_s:g} s are not between 1 and {MAX_AGENTS} agents"
        )
    moments = list(arrival_times_s(spec.aps, end_s, spec.seed))
    if not moments:
        raise ConfigError(f"[workload] aps: at {spec.aps:g} agents per second none arrives within {end_s:g} s")
    return moments


def make_agents(trajectories: Sequence[Trajectory]) -> list[Agent]:
    return [Agent(index, one.rounds) for index, one in enumerate(trajectories)]


def longest_tokens(trajectories: Sequence[Trajectory]) -> int:
    """The largest context that any request reaches."""
    return max(one.total_tokens for one in trajectories)


def mean_request(trajectories: Sequence[Trajectory], block_tokens: int) -> tuple[float, float]:
    """Mean prompt and hit tokens of a request, of at most a few hundred trajectories."""
    prompts = hits = count = 0
    for one in trajectories[:500]:
        known = 0
        for turn, prompt in zip(one.rounds, one.prompt_lengths, strict=True):
            prompts += prompt
            hits += min(known, prompt - 1) // block_tokens * block_tokens
            known = prompt + turn.generate_tokens
            count += 1
    return prompts / count, hits / count


def _reshaped(one: Trajectory, append_scale: float, generate_scale: float) -> Trajectory:
    rounds = tuple(
        replace(
            turn,
            append_tokens=max(1, round(turn.append_tokens * append_scale)),
            generate_tokens=max(1, round(turn.generate_tokens * generate_scale)),
        )
        for turn in one.rounds
    )
    return replace(one, rounds=rounds, prefix=None)

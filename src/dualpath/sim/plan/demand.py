"""What a workload asks of a cluster for each request: the means that the planner's bounds are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dualpath.sim.cost import PrefillCost
from dualpath.trace.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Demand:
    """Means over requests, unless a name says otherwise."""

    prompt_tokens: float
    hit_tokens: float
    generate_tokens: float
    attention_s: float  # of one prefill engine; exact: of every request, not of the mean request
    think_s: float
    requests_per_agent: float
    total_tokens: float  # of an agent's context at its end, mean over agents
    longest_tokens: int  # of any request's context

    @property
    def new_tokens(self) -> float:
        """Prompt tokens to compute."""
        return self.prompt_tokens - self.hit_tokens


def demand_of(trajectories: Sequence[Trajectory], block_tokens: int, cost: PrefillCost) -> Demand:
    """Hits are whole blocks of everything before the turn, and never the whole prompt."""
    prompts = hits = gens = count = 0
    attention_s = think_s = 0.0
    for one in trajectories:
        known = 0
        for turn, prompt in zip(one.rounds, one.prompt_lengths, strict=True):
            hit = min(known, prompt - 1) // block_tokens * block_tokens
            prompts, hits, gens, count = prompts + prompt, hits + hit, gens + turn.generate_tokens, count + 1
            attention_s += cost.request_attention_s(hit, prompt - hit)
            think_s += turn.think_s
            known = prompt + turn.generate_tokens - 1
    return Demand(
        prompt_tokens=prompts / count,
        hit_tokens=hits / count,
        generate_tokens=gens / count,
        attention_s=attention_s / count,
        think_s=think_s / count,
        requests_per_agent=count / len(trajectories),
        total_tokens=sum(one.total_tokens for one in trajectories) / len(trajectories),
        longest_tokens=max(one.total_tokens for one in trajectories),
    )

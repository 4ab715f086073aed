"""From a trace to what each agent sends: how many tokens, and which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dualpath.core.errors import ConfigError
from dualpath.trace.tokens import prompt_tokens
from dualpath.trace.trajectory import Trajectory

_SPECIAL_IDS = 1000  # real vocabularies begin with special tokens and single bytes; made-up prompts keep clear of both
_MOST_IDS = 30_000
_PRINTABLE = range(32, 127)  # ordinary tokens in a vocabulary of bytes


@dataclass(frozen=True, slots=True)
class Step:
    """One turn: what the agent adds to the conversation, and how many tokens the model answers."""

    append_ids: tuple[int, ...]
    generate_tokens: int
    think_s: float = 0.0  # time the agent's tools take before this turn


@dataclass(frozen=True, slots=True)
class Script:
    """One agent's conversation."""

    steps: tuple[Step, ...]

    @property
    def total_tokens(self) -> int:
        """The context after the last turn."""
        return sum(len(step.append_ids) + step.generate_tokens for step in self.steps)


def vocabulary(vocab_size: int) -> range:
    """Token ids to make prompts of, for a model with ``vocab_size`` of them."""
    if vocab_size <= _PRINTABLE.stop:
        raise ConfigError(f"a vocabulary of {vocab_size} tokens is too small to make prompts of")
    if vocab_size <= 2 * _SPECIAL_IDS:
        return _PRINTABLE
    return range(_SPECIAL_IDS, min(vocab_size, _MOST_IDS))


def scripts_of(trajectories: Sequence[Trajectory], *, seed: int, vocab: range) -> list[Script]:
    """The same trajectories, seed and vocabulary always give the same tokens."""
    return [_script(trajectory, seed, vocab) for trajectory in trajectories]


def max_context_tokens(scripts: Sequence[Script]) -> int:
    """What a cluster must be able to hold for the longest of them."""
    return max(script.total_tokens for script in scripts)


def _script(trajectory: Trajectory, seed: int, vocab: range) -> Script:
    steps = (
        Step(tuple(prompt_tokens(trajectory, i, seed=seed, vocab=vocab)), one.generate_tokens, one.think_s)
        for i, one in enumerate(trajectory.rounds)
    )
    return Script(tuple(steps))

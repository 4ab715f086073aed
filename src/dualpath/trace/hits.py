"""What a cache that never forgets would hit: the ceiling for any replay of a trace, from its lengths alone.

Counted as the server counts (``docs/architecture.md``): whole blocks only, at most prompt - 1 tokens, generated tokens
are stored like any other, and a trajectory's shared prefix hits once another of its group has been seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dualpath.core.errors import ConfigError
from dualpath.trace.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class CacheHits:
    """Hits over all prompts. ``blocks``: whole blocks of the prompts; ``tokens``: all their tokens."""

    hit_blocks: int
    num_blocks: int
    hit_tokens: int
    num_tokens: int

    @property
    def block_rate(self) -> float:
        return self.hit_blocks / max(1, self.num_blocks)

    @property
    def token_rate(self) -> float:
        return self.hit_tokens / max(1, self.num_tokens)


def infinite_cache_hits(trajectories: Iterable[Trajectory], *, block_tokens: int = 64) -> CacheHits:
    """Replay one trajectory after the other. In a replay where members of a group start together, the first of them
    may miss the group's prefix more than once."""
    if block_tokens < 1:
        raise ConfigError(f"block tokens: must be at least 1, not {block_tokens}")
    seen_tokens: dict[tuple[str, str], int] = {}
    hit_blocks = num_blocks = num_tokens = 0
    for one in trajectories:
        known = _shared_tokens(one, seen_tokens)
        for turn, prompt in zip(one.rounds, one.prompt_lengths, strict=True):
            hit_blocks += min(known, prompt - 1) // block_tokens
            num_blocks += prompt // block_tokens
            num_tokens += prompt
            known = prompt + turn.generate_tokens  # a block that the last token completes is stored too
    return CacheHits(hit_blocks, num_blocks, hit_blocks * block_tokens, num_tokens)


def unique_block_rate(requests: Iterable[Sequence[object]]) -> float:
    """Share of blocks seen before, for requests in order of time that name their blocks themselves."""
    seen: set[object] = set()
    num_blocks = 0
    for blocks in requests:
        num_blocks += len(blocks)
        seen.update(blocks)
    return 1 - len(seen) / num_blocks if num_blocks else 0.0


def _shared_tokens(one: Trajectory, seen_tokens: dict[tuple[str, str], int]) -> int:
    """Tokens of the first prompt that an earlier trajectory brought; notes what this one brings.

    Tools are shared by tool set; a system prompt is shared when the tools before it are, so it is noted with their
    length.
    """
    prefix = one.prefix
    if prefix is None:
        return 0
    tools = ("tools", prefix.group.partition("/")[0])
    system = ("system", f"{prefix.tool_tokens}/{prefix.group}")
    shared = min(prefix.tool_tokens, seen_tokens.get(tools, 0))
    if shared == prefix.tool_tokens:
        shared += min(prefix.system_tokens, seen_tokens.get(system, 0))
    seen_tokens[tools] = max(prefix.tool_tokens, seen_tokens.get(tools, 0))
    seen_tokens[system] = max(prefix.system_tokens, seen_tokens.get(system, 0))
    return shared

"""Token ids made up for a trajectory: equal in every replay, and different between agents but for declared prefixes.

They come from raw generator output, whose stream NumPy keeps across versions, seeded by a hash of (seed, what, which).
"""

from __future__ import annotations

import hashlib

import numpy as np

from dualpath.core.errors import ConfigError
from dualpath.trace.trajectory import Trajectory


def prompt_tokens(trajectory: Trajectory, round_index: int, *, seed: int, vocab: range) -> list[int]:
    """What round ``round_index`` appends. The rest of its prompt is what was appended and generated before.

    ``vocab``: ids to draw from, e.g. ``range(1000, 30000)`` to stay clear of special tokens. Two prompts of agents that
    share nothing agree in a token by chance once in ``len(vocab)``.
    """
    if len(vocab) < 2 or vocab.start < 0:
        raise ConfigError(f"token ids need a range of at least two ids from 0 on, not {vocab}")
    shared: list[int] = []
    prefix = trajectory.prefix
    if round_index == 0 and prefix is not None:
        tools = prefix.group.partition("/")[0]
        shared += _draw(("tools", tools), prefix.tool_tokens, seed, vocab)
        shared += _draw(("system", prefix.group), prefix.system_tokens, seed, vocab)
    own = trajectory.rounds[round_index].append_tokens - len(shared)
    return shared + _draw(("round", trajectory.id, str(round_index)), own, seed, vocab)


def _draw(what: tuple[str, ...], num_tokens: int, seed: int, vocab: range) -> list[int]:
    """The first ``num_tokens`` of one endless stream: a shorter draw is the beginning of a longer one."""
    key = "\x1f".join([str(seed), *what]).encode("utf-8", "surrogatepass")
    entropy = int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "little")
    raw = np.random.PCG64(entropy).random_raw(num_tokens)
    picks = (raw % np.uint64(len(vocab))).astype(np.int64)
    return (vocab.start + vocab.step * picks).tolist()  # type: ignore[no-any-return]

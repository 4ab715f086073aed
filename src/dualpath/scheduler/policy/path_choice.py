"""Through which side's storage NIC a request's hit blocks are read: one table of policies by name.

The paper reads everything on the side with the shorter storage reading queue (``shorter``, section 6). ``split`` goes
one step further and gives each side the share with which both reading queues end at the same time. ``prefill`` and
``decode`` are fixed, ``round_robin`` alternates. A comparison policy is one more function in ``PATH_POLICIES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from dualpath.core.errors import ConfigError
from dualpath.core.plan import ReadPlan


class PathQuestion(NamedTuple):
    """Everything a path policy may look at. A tuple: one is made for every request, simulated ones included."""

    num_hit_blocks: int
    block_tokens: int
    prefill_queue_tokens: int  # storage reading queue of the prefill engine's node
    decode_queue_tokens: int  # storage reading queue of the decode engine's node
    prefill_rate: float = 1.0  # storage NICs' speeds; any unit, only their ratio counts
    decode_rate: float = 1.0
    sequence: int = 0  # how many requests with hits were planned before this one
    prefill_is_stalled: bool = False  # the side's storage has left calls unanswered for too long
    decode_is_stalled: bool = False


PathPolicy = Callable[[PathQuestion], ReadPlan]


_plan = lru_cache(maxsize=1 << 16)(ReadPlan)  # plans are values: requests with the same numbers share one


def read_on_prefill(question: PathQuestion) -> ReadPlan:
    return _plan(question.num_hit_blocks, question.num_hit_blocks)


def read_on_decode(question: PathQuestion) -> ReadPlan:
    return _plan(question.num_hit_blocks, 0)


def read_alternating(question: PathQuestion) -> ReadPlan:
    return read_on_prefill(question) if question.sequence % 2 == 0 else read_on_decode(question)


def read_on_shorter(question: PathQuestion) -> ReadPlan:
    """The side with the shorter reading queue (paper section 6); equal queues: prefill, the shorter way for hit KV."""
    num_blocks = question.num_hit_blocks
    return _plan(num_blocks, num_blocks if question.prefill_queue_tokens <= question.decode_queue_tokens else 0)


def read_split(question: PathQuestion) -> ReadPlan:
    """Both sides end together: (queue_p + x) / rate_p = (queue_d + hit - x) / rate_d, solved for the prefill share x.

    With equal rates x = (hit + queue_d - queue_p) / 2. Clipped to [0, hit] and rounded to whole blocks.
    """
    q = question
    prefill_part = q.prefill_rate / (q.prefill_rate + q.decode_rate)
    all_tokens = q.prefill_queue_tokens + q.decode_queue_tokens + q.num_hit_blocks * q.block_tokens
    share_tokens = prefill_part * all_tokens - q.prefill_queue_tokens
    num_blocks = math.floor(share_tokens / q.block_tokens + 0.5)
    return ReadPlan(q.num_hit_blocks, min(max(num_blocks, 0), q.num_hit_blocks))


PATH_POLICIES: Mapping[str, PathPolicy] = {
    "shorter": read_on_shorter,
    "split": read_split,
    "prefill": read_on_prefill,
    "decode": read_on_decode,
    "round_robin": read_alternating,
}


def path_policy(name: str) -> PathPolicy:
    """The policy of that name, where storage answers. Raises ConfigError naming the ones there are.

    No policy reads on a side whose storage is stalled; where both are, the plan has no blocks: all is recomputed.
    """
    if name not in PATH_POLICIES:
        raise ConfigError(f"no path policy {name!r}; choose one of {', '.join(sorted(PATH_POLICIES))}")
    policy = PATH_POLICIES[name]

    def spare_stalled(question: PathQuestion) -> ReadPlan:
        if question.prefill_is_stalled:
            return _plan(0, 0) if question.decode_is_stalled else read_on_decode(question)
        return read_on_prefill(question) if question.decode_is_stalled else policy(question)

    return spare_stalled

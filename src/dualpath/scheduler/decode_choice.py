"""Which decode engine takes a request: first a group by load, then an engine inside it by balance (paper section 6).

Phase 1 drains the global queue into the groups' private queues. Phase 2 runs inside a group and looks ahead: with R the
requests at the head of the queue that would fit if device memory were not fragmented, no engine should end above
Z = 1.05 times the mean load that R leaves behind; below Z, fewest requests wins, since decoding is batch-bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dualpath.core.ids import EngineId
from dualpath.scheduler.snapshot import EngineSnapshot, GroupId

BALANCE_SLACK = 1.05  # the factor in Z (paper section 6)


def choose_group(group_tokens: Mapping[GroupId, int]) -> GroupId | None:
    """Phase 1: the group with the least total tok_e, its private queue included; None when there is no group."""
    return min(group_tokens, key=group_tokens.__getitem__, default=None)


def choose_group_in_turn(groups: Sequence[GroupId], turn: int) -> GroupId | None:
    """The comparison systems' phase 1: group ``turn`` of a rotation; every engine is a group of its own there."""
    return groups[turn % len(groups)] if groups else None


def num_fitting(request_tokens: Sequence[int], free_tokens: int) -> int:
    """|R|: how many requests from the head of the queue fit into the group's free device memory taken as one piece."""
    for index, length in enumerate(request_tokens):
        free_tokens -= length
        if free_tokens < 0:
            return index
    return len(request_tokens)


def balance_limit_tokens(request_tokens: Sequence[int], engines: Sequence[EngineSnapshot]) -> float:
    """Z = 1.05 * (sum of len(r) over R + sum of tok_e) / |E| (paper section 6)."""
    fitting = num_fitting(request_tokens, sum(engine.free_device_tokens for engine in engines))
    total = sum(request_tokens[:fitting]) + sum(engine.num_tokens for engine in engines)
    return BALANCE_SLACK * total / len(engines)


def assign_decode(request_tokens: Sequence[int], engines: Sequence[EngineSnapshot]) -> Iterator[EngineId]:
    """Phase 2: engines for the requests of one group's private queue, in queue order; ends where none has room.

    Lazy: a caller that stops early has decided nothing about the rest.
    """
    if not engines:
        return
    limit = balance_limit_tokens(request_tokens, engines)
    tokens = [engine.num_tokens for engine in engines]
    requests = [engine.num_requests for engine in engines]
    free = [engine.free_device_tokens for engine in engines]
    for length in request_tokens:
        roomy = [i for i in range(len(engines)) if free[i] >= length]
        if not roomy:
            return
        balanced = [i for i in roomy if tokens[i] + length <= limit]
        if balanced:
            chosen = min(balanced, key=lambda i: (requests[i], tokens[i]))
        else:
            chosen = min(roomy, key=lambda i: tokens[i])
        tokens[chosen] += length
        requests[chosen] += 1
        free[chosen] -= length
        yield engines[chosen].engine_id

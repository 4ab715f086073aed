"""Which decode engine takes a request: first a group by load, then an engine inside it by balance (paper section 6).

Phase 1 drains the global queue into the groups' private queues. Phase 2 runs inside a group and looks ahead: with R the
requests at the head of the queue that would fit if device memory were not fragmented, no engine should end above
Z = 1.05 times the mean load that R leaves behind; below Z, fewest requests wins, since decoding is batch-bound.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from dualpath.core.ids import EngineId
from dualpath.scheduler.policy.engine_load import EngineLoad, GroupId

BALANCE_SLACK = 1.05  # the factor in Z (paper section 6)


def choose_group(group_tokens: Mapping[GroupId, int]) -> GroupId | None:
    """Phase 1: the group with the least total tok_e, its private queue included; None when there is no group.

    Of equal ones the first. ``LeastLoaded`` does the same for many groups.
    """
    return min(group_tokens, key=group_tokens.__getitem__, default=None)


def choose_group_in_turn(groups: Sequence[GroupId], turn: int) -> GroupId | None:
    """The comparison systems' phase 1: group ``turn`` of a rotation; every engine is a group of its own there."""
    return groups[turn % len(groups)] if groups else None


def fitting_tokens(request_tokens: Collection[int], free_tokens: int) -> int:
    """The sum of len(r) over R: the head of the queue that fits into ``free_tokens`` taken as one piece."""
    total = sum(request_tokens)
    if total <= free_tokens:
        return total
    total = 0
    for length in request_tokens:
        if total + length > free_tokens:
            break
        total += length
    return total


def balance_limit_tokens(request_tokens: Collection[int], tokens: Sequence[int], free: Sequence[int]) -> float:
    """Z = 1.05 * (sum of len(r) over R + sum of tok_e) / |E| (paper section 6), from each engine's tok_e and room."""
    return BALANCE_SLACK * (fitting_tokens(request_tokens, sum(free)) + sum(tokens)) / len(tokens)


def assign_decode(
    request_tokens: Collection[int],
    engines: Sequence[EngineLoad],
    may_take: Callable[[int, int], bool] | None = None,
) -> Iterator[EngineId]:
    """Phase 2: engines for the requests of one group's private queue, in queue order; ends where none has room.

    ``may_take(request, engine)``, by their numbers: whether the engine comes into question at all; None: all do. Each
    request should have one. Lazy: a caller that stops early has decided nothing about the rest.
    """
    if not engines:
        return
    tokens = [engine.num_tokens for engine in engines]
    requests = [engine.num_requests for engine in engines]
    free = [engine.free_device_tokens for engine in engines]
    limit = balance_limit_tokens(request_tokens, tokens, free)
    indices = range(len(tokens))
    for number, length in enumerate(request_tokens):
        _, load, chosen = min(zip(requests, tokens, indices, strict=True))  # the best of all, if it qualifies
        if may_take is not None or free[chosen] < length or load + length > limit:
            there = indices if may_take is None else [index for index in indices if may_take(number, index)]
            found = _most_suitable(there, length, limit, tokens, requests, free)
            if found is None:
                return
            chosen = found
        tokens[chosen] += length
        requests[chosen] += 1
        free[chosen] -= length
        yield engines[chosen].engine_id


def _most_suitable(
    there: Collection[int],
    length: int,
    limit: float,
    tokens: Sequence[int],
    requests: Sequence[int],
    free: Sequence[int],
) -> int | None:
    """Of the engines with room: within the limit that of fewest requests, then tokens; else that of fewest tokens."""
    roomy = [index for index in there if free[index] >= length]
    balanced = [(requests[index], tokens[index], index) for index in roomy if tokens[index] + length <= limit]
    if balanced:
        return min(balanced)[2]
    return min(roomy, key=tokens.__getitem__, default=None)

"""The compute quota of a prefill engine: requests join a forward batch while its predicted attention time stays below.

First come, first served; the request that would exceed the quota is chunked to the most tokens that still fit, found by
binary search (paper section 6, "Inside a PE"). ``engine.batch.pack`` calls this for every request in line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dualpath.scheduler.policy.cost import Pair

MIN_CHUNK_TOKENS = 64  # each chunk loads the whole history again: fewer tokens at a time cost more than they even out


class AttentionCost(Protocol):
    """What the quota needs to know of a model: seconds that never fall as a request brings more new tokens."""

    def request_attention_s(self, num_cached: int, num_new: int) -> float: ...


@dataclass(frozen=True, slots=True)
class ComputeQuota:
    """Callable as ``engine.batch.Quota``; ``begin`` is the same for one batch, without starting anew each time."""

    cost: AttentionCost
    quota_s: float
    min_chunk_tokens: int = MIN_CHUNK_TOKENS

    def __call__(self, chosen: Sequence[Pair], num_cached: int, wanted: int) -> int:
        """How many of ``wanted`` new tokens may join ``chosen``; 0 = none.

        The first request of a batch always gets ``min_chunk_tokens``, or no forward would ever take a very long one.
        """
        used_s = sum(self.cost.request_attention_s(cached, new) for cached, new in chosen)
        return QuotaFill(self, used_s, not chosen).take(num_cached, wanted)

    def begin(self) -> QuotaFill:
        return QuotaFill(self, 0.0, True)


class QuotaFill:
    """One forward batch that is being filled."""

    __slots__ = ("_cost", "_is_empty", "_min_chunk_tokens", "_quota_s", "used_s")

    def __init__(self, quota: ComputeQuota, used_s: float, is_empty: bool) -> None:
        self._cost, self._quota_s, self._min_chunk_tokens = quota.cost, quota.quota_s, quota.min_chunk_tokens
        self._is_empty = is_empty
        self.used_s = used_s  # predicted attention time of what has been taken

    def take(self, num_cached: int, wanted: int) -> int:
        """How many of ``wanted`` new tokens join the batch; 0 = none."""
        added_s = self._cost.request_attention_s(num_cached, wanted)
        allowed = wanted
        if self.used_s + added_s > self._quota_s:
            allowed = self._most(num_cached, wanted)
            if self._is_empty:
                allowed = max(allowed, min(wanted, self._min_chunk_tokens))
            if not allowed:
                return 0
            added_s = self._cost.request_attention_s(num_cached, allowed)
        self.used_s += added_s
        self._is_empty = False
        return allowed

    def _most(self, num_cached: int, exceeds: int) -> int:
        fits = 0  # the predicted time grows with the tokens
        while exceeds - fits > 1:
            middle = (fits + exceeds) // 2
            if self.used_s + self._cost.request_attention_s(num_cached, middle) <= self._quota_s:
                fits = middle
            else:
                exceeds = middle
        return fits

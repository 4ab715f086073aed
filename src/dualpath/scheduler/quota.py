"""The compute quota of a prefill engine: requests join a forward batch while its predicted attention time stays below.

First come, first served; the request that would exceed the quota is chunked to the most tokens that still fit, found by
binary search (paper section 6, "Inside a PE"). ``engine.batch.pack`` calls this for every request in line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dualpath.scheduler.cost import ForwardCost, Pair

MIN_CHUNK_TOKENS = 64  # each chunk loads the whole history again: fewer tokens at a time cost more than they even out


@dataclass(frozen=True, slots=True)
class ComputeQuota:
    """Callable as ``engine.batch.Quota``."""

    cost: ForwardCost
    quota_s: float
    min_chunk_tokens: int = MIN_CHUNK_TOKENS

    def __call__(self, chosen: Sequence[Pair], num_cached: int, wanted: int) -> int:
        """How many of ``wanted`` new tokens may join ``chosen``; 0 = none.

        The first request of a batch always gets ``min_chunk_tokens``, or no forward would ever take a very long one.
        """
        allowed = self._most(self.cost.attention_s(chosen), num_cached, wanted)
        return allowed if chosen else max(allowed, min(wanted, self.min_chunk_tokens))

    def _most(self, used_s: float, num_cached: int, wanted: int) -> int:
        fits, exceeds = 0, wanted + 1  # the predicted time grows with the tokens
        while exceeds - fits > 1:
            middle = (fits + exceeds) // 2
            if used_s + self.cost.attention_s([(num_cached, middle)]) <= self.quota_s:
                fits = middle
            else:
                exceeds = middle
        return fits

"""What a model costs on a GPU, as the simulator sees it: prefill forwards in lockstep, decode steps, KV bytes.

The only seam between the catalogues (which derive these numbers from a model's and a GPU's data sheet), a profile taken
on a real cluster (``PrefillCost.of``), and the simulator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dualpath.scheduler.policy.cost import DecodeCost, ForwardCost, Pair


def capped_pairs(num_cached: int, num_new: int, top_k: int | None) -> float:
    """Query-key pairs of causal attention when no query looks at more than ``top_k`` keys (None: at all of them).

    The integral of min(num_cached + x, top_k) over the new tokens, as ``attention_pairs`` without a cap.
    """
    if top_k is None:
        return num_new * (num_cached + num_new / 2)
    below = min(max(top_k - num_cached, 0), num_new)  # new tokens that still see fewer keys than the cap
    return below * (num_cached + below / 2) + (num_new - below) * top_k


@dataclass(frozen=True, slots=True)
class PrefillCost:
    """Seconds of one prefill forward of a group of GPUs that run in lockstep (expert parallelism: every layer waits).

    Attention is data parallel: each GPU does its own requests', and all wait for the slowest. Experts (or a dense FFN
    shared by the group) are spread over all GPUs: their time goes with the group's tokens.
    """

    base_s: float = 0.0  # of every forward, whatever is in it
    token_s: float = 0.0  # for each new token of this GPU: attention's projections
    pair_s: float = 0.0  # for each query-key pair, keys capped at top_k
    index_pair_s: float = 0.0  # for each query-key pair without a cap: a sparse attention's indexer
    top_k: int | None = None  # keys a query attends to; None: all
    group_token_s: float = 0.0  # GPU-seconds of experts and FFN for each new token of any GPU of the group

    @classmethod
    def of(cls, cost: ForwardCost) -> PrefillCost:
        """A profiled engine on its own, exactly: a group of one GPU."""
        return cls(base_s=cost.base_s, pair_s=cost.per_pair_s, group_token_s=cost.per_token_s)

    def attention_s(self, batch: Iterable[Pair]) -> float:
        """One GPU's own part, for its (cached, new) requests: what the compute quota limits (paper section 6)."""
        return sum(self.request_attention_s(cached, new) for cached, new in batch)

    def request_attention_s(self, num_cached: int, num_new: int) -> float:
        pairs = num_new * (num_cached + num_new / 2)
        top_k = self.top_k
        if top_k is None:
            capped = pairs
        else:
            capped = num_new * top_k if num_cached >= top_k else capped_pairs(num_cached, num_new, top_k)
        return self.token_s * num_new + self.pair_s * capped + self.index_pair_s * pairs

    def forward_s(self, batches: Sequence[Sequence[Pair]]) -> float:
        """One lockstep forward of the group; ``batches`` has an entry for each of its GPUs, empty ones included."""
        slowest = max(self.attention_s(batch) for batch in batches)
        num_tokens = sum(new for batch in batches for _, new in batch)
        return self.group_forward_s(slowest, num_tokens, len(batches))

    def group_forward_s(self, attention_s: float, num_tokens: int, num_gpus: int) -> float:
        """The same from the slowest GPU's attention time and the group's new tokens."""
        return self.base_s + attention_s + self.group_token_s * num_tokens / num_gpus


@dataclass(frozen=True, slots=True)
class ModelCost:
    """Everything the simulator knows of a model on a GPU."""

    prefill: PrefillCost
    decode: DecodeCost
    kv_bytes_per_token: int  # all layers together
    num_layers: int
    prefill_collective_bytes: float = 0.0  # on a compute NIC, each way, for each new token of its GPU
    decode_collective_bytes: float = 0.0  # the same for each generated token

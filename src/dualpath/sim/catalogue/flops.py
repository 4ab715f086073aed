"""Work of a prefill as a function of (cached, new), in the parts that a simulated forward tells apart.

Two FLOPs per weight and new token; per query-key pair what the attention's shape says; pairs are those of
``scheduler.policy.cost.attention_pairs``, capped by a sliding window or a sparse attention's top-k.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from dualpath.scheduler.policy.cost import attention_pairs
from dualpath.sim.catalogue.attention import GroupedQuery
from dualpath.sim.catalogue.convention import PHYSICAL, Convention, LatentForm
from dualpath.sim.catalogue.shape import ModelShape
from dualpath.sim.cost import capped_pairs


@dataclass(frozen=True, slots=True)
class PrefillFlops:
    """FLOPs of one prefill, all layers."""

    projections: float  # attention's linear layers, the indexer's included
    pairs: float  # scores and values
    index_pairs: float  # the indexer's scores
    expansion: float  # keys and values from cached latents: expanded latent attention only
    ffn: float  # dense FFN, routed and shared experts, routers
    head: float  # output logits

    @property
    def total(self) -> float:
        return sum(self.to_json().values())

    def to_json(self) -> dict[str, float]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def prefill_flops(model: ModelShape, num_cached: int, num_new: int, convention: Convention = PHYSICAL) -> PrefillFlops:
    """Raises ValueError for a negative history or nothing new."""
    if num_cached < 0 or num_new < 1:
        raise ValueError(f"a prefill needs num_cached >= 0 and num_new >= 1, got {num_cached} and {num_new}")
    indexer = model.indexer
    index_pair_flops = 0 if indexer is None else model.num_layers * indexer.pair_flops
    full = model.full_layers * capped_pairs(num_cached, num_new, None if indexer is None else indexer.top_k)
    windowed = model.windowed_layers * capped_pairs(num_cached, num_new, model.window_tokens)
    return PrefillFlops(
        projections=2.0 * model.attention_params * num_new,
        pairs=pair_flops(model, convention) * (full + windowed),
        index_pairs=index_pair_flops * attention_pairs(num_cached, num_new),
        expansion=float(_expansion_flops_per_cached_token(model, convention) * num_cached),
        ffn=2.0 * model.ffn.active_params(model.hidden) * num_new,
        head=2.0 * model.head_params * (num_new if convention.every_logit else 1),
    )


def pair_flops(model: ModelShape, convention: Convention = PHYSICAL) -> int:
    """One query-key pair, all heads, one layer."""
    attention = model.attention
    if isinstance(attention, GroupedQuery):
        return attention.pair_flops
    is_expanded = convention.latent_form is LatentForm.EXPANDED
    return attention.pair_flops(is_expanded=is_expanded, has_rotary_scores=convention.rotary_scores)


def _expansion_flops_per_cached_token(model: ModelShape, convention: Convention) -> int:
    """All layers; with an indexer as if every cached latent were some query's choice (an upper bound)."""
    if isinstance(model.attention, GroupedQuery) or convention.latent_form is not LatentForm.EXPANDED:
        return 0
    return model.num_layers * model.attention.expansion_flops

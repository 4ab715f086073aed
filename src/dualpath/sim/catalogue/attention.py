"""Attention by shape: what it caches per token, what a query-key pair costs, how many weights its projections have.

FLOPs count a multiplication and an addition as two. Softmax, norms, biases and rotary embeddings are left out: together
below a percent of any model here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GroupedQuery:
    """Multi-head attention whose query heads share KV heads (Ainslie et al., arXiv 2305.13245)."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def row_elems(self) -> int:
        """Cached elements of one token in one layer: keys and values."""
        return 2 * self.kv_heads * self.head_dim

    @property
    def pair_flops(self) -> int:
        """Score and weighted value of one query token and one key token, all heads, one layer."""
        return 4 * self.heads * self.head_dim

    def projection_params(self, hidden: int) -> int:
        """Weights of the query, key, value and output projections of one layer."""
        return hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)


@dataclass(frozen=True, slots=True)
class Indexer:
    """DeepSeek Sparse Attention's lightning indexer: cheap scores that choose the ``top_k`` keys of a query.

    Shapes as in ``inference/model.py`` of the DeepSeek-V3.2-Exp repository.
    """

    heads: int
    head_dim: int
    top_k: int

    @property
    def pair_flops(self) -> int:
        """One dot product per indexer head; there is one key per token for all of them."""
        return 2 * self.heads * self.head_dim

    def projection_params(self, hidden: int, query_width: int) -> int:
        """Queries (from the query latent, or the hidden state without one), the key, and the heads' weights."""
        return query_width * self.heads * self.head_dim + hidden * (self.head_dim + self.heads)


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): a latent and a rotary key per token."""

    heads: int
    latent_dim: int  # kv_lora_rank
    rope_dim: int
    nope_dim: int
    value_dim: int
    query_rank: int | None  # q_lora_rank; None: queries straight from the hidden state
    indexer: Indexer | None = None

    def pair_flops(self, *, is_expanded: bool, has_rotary_scores: bool) -> int:
        """One query-key pair, all heads, one layer.

        Absorbed, a score is a dot product with the latent and the rotary key, and the value is the latent. Expanded,
        keys and values of every head have been computed from the latent first (``expansion_flops``).
        """
        key, value = (self.nope_dim, self.value_dim) if is_expanded else (self.latent_dim, self.latent_dim)
        return 2 * self.heads * (key + (self.rope_dim if has_rotary_scores else 0) + value)

    @property
    def expansion_flops(self) -> int:
        """Keys and values of all heads from one cached latent, one layer."""
        return 2 * self.latent_dim * self.heads * (self.nope_dim + self.value_dim)

    def projection_params(self, hidden: int) -> int:
        """Weights of all projections of one layer, the indexer's included.

        Both forms do the work of ``kv_b_proj`` once per new token: expanded on the token's latent, absorbed half on its
        query and half on its output.
        """
        query = self.heads * (self.nope_dim + self.rope_dim)
        params = hidden * query if self.query_rank is None else self.query_rank * (hidden + query)
        params += hidden * (self.latent_dim + self.rope_dim)
        params += self.latent_dim * self.heads * (self.nope_dim + self.value_dim)
        params += self.heads * self.value_dim * hidden
        return params + (
            0 if self.indexer is None else self.indexer.projection_params(hidden, self.query_width(hidden))
        )

    def query_width(self, hidden: int) -> int:
        return hidden if self.query_rank is None else self.query_rank


Attention = GroupedQuery | Latent

"""A model's shape: layers, attention, feed-forward network, vocabulary; and the parameters that follow from it.

Counted are weight matrices. Norms, biases, attention sinks and multi-token-prediction layers (not loaded for plain
decoding) are left out; published totals agree within 1 %.
"""

from __future__ import annotations

from dataclasses import dataclass

from dualpath.sim.catalogue.attention import Attention, Indexer, Latent

GATED_MATRICES = 3  # gate, up, down: every family here has a gated FFN (SwiGLU)


@dataclass(frozen=True, slots=True)
class FeedForward:
    """Dense layers, and layers with routed and shared experts. A model without experts has dense layers only."""

    dense_layers: int
    dense_width: int
    expert_layers: int = 0
    expert_width: int = 0
    num_experts: int = 0
    experts_per_token: int = 0
    shared_width: int = 0  # of all shared experts together

    def dense_params(self, hidden: int) -> int:
        """Read by every token: dense layers, shared experts, routers."""
        dense = self.dense_layers * GATED_MATRICES * hidden * self.dense_width
        return dense + self.expert_layers * hidden * (GATED_MATRICES * self.shared_width + self.num_experts)

    def expert_params(self, hidden: int) -> int:
        """Routed experts, all of them."""
        return self.expert_layers * self.num_experts * GATED_MATRICES * hidden * self.expert_width

    def active_params(self, hidden: int) -> int:
        """What one token goes through."""
        routed = self.expert_layers * self.experts_per_token * GATED_MATRICES * hidden * self.expert_width
        return self.dense_params(hidden) + routed


@dataclass(frozen=True, slots=True)
class ModelShape:
    """One decoder-only model. Layers with a sliding window attend to, and need, the last ``window_tokens`` only."""

    name: str
    source: str  # where the shape was published
    hidden: int
    vocab: int
    num_layers: int
    attention: Attention
    ffn: FeedForward
    windowed_layers: int = 0
    window_tokens: int = 0
    is_tied: bool = False  # output head and embedding are one matrix
    linear_dtype: str = "bf16"  # of the checkpoint: attention, dense FFN, shared experts
    expert_dtype: str = "bf16"  # of the checkpoint: routed experts

    @property
    def full_layers(self) -> int:
        """Layers that attend to the whole context."""
        return self.num_layers - self.windowed_layers

    @property
    def indexer(self) -> Indexer | None:
        return self.attention.indexer if isinstance(self.attention, Latent) else None

    @property
    def attention_params(self) -> int:
        return self.num_layers * self.attention.projection_params(self.hidden)

    @property
    def head_params(self) -> int:
        """The output head; an embedding has as many."""
        return self.vocab * self.hidden

    @property
    def total_params(self) -> int:
        ffn = self.ffn.dense_params(self.hidden) + self.ffn.expert_params(self.hidden)
        return self.attention_params + ffn + self.head_params * (1 if self.is_tied else 2)

    @property
    def active_params(self) -> int:
        """Weights that a token is multiplied with: layers and output head, not the embedding, which is looked up."""
        return self.attention_params + self.ffn.active_params(self.hidden) + self.head_params

"""KV-cache geometry: how many bytes a token, a Layer Block and a Full Block take, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KvGeometry:
    """Shape of one model's KV-cache on storage, in staging buffers and on devices alike.

    A Layer Block is ``block_tokens`` consecutive tokens of one layer: ``[block_tokens, bytes_per_token_layer]``.
    A Full Block is ``num_layers`` Layer Blocks, layer 0 first: ``[num_layers, block_tokens, bytes_per_token_layer]``
    (paper section 4.1). To everything but the model a Layer Block is opaque bytes.
    """

    num_layers: int
    block_tokens: int
    bytes_per_token_layer: int

    def __post_init__(self) -> None:
        for name in ("num_layers", "block_tokens", "bytes_per_token_layer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def layer_block_bytes(self) -> int:
        return self.block_tokens * self.bytes_per_token_layer

    @property
    def full_block_bytes(self) -> int:
        return self.num_layers * self.layer_block_bytes

    @property
    def bytes_per_token(self) -> int:
        return self.num_layers * self.bytes_per_token_layer

    def blocks_for(self, num_tokens: int) -> int:
        """Number of blocks that hold ``num_tokens`` tokens, the last one possibly partly filled."""
        return -(-num_tokens // self.block_tokens)

    def full_blocks_in(self, num_tokens: int) -> int:
        """Number of completely filled blocks among ``num_tokens`` tokens."""
        return num_tokens // self.block_tokens

"""What is inside a KV row: the only place that knows where keys, values and latents lie in a Layer Block.

A row is everything one layer caches for one token, in the model's KV dtype:

- grouped-query attention: ``[kv_heads * head_dim]`` keys (after rotary embedding), then as many values;
- multi-head latent attention (DeepSeek): the latent ``[kv_lora_rank]``, the rotary key ``[qk_rope_head_dim]``, then for
  sparse attention (DeepSeek-V3.2) the indexer's key ``[index_head_dim]``.

Bytes from an engine become typed tensors by ``view``: nothing here copies history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


class KvLayout(Protocol):
    """Rows of one family. ``rows`` below is any tensor whose last dimension is ``row_elems``, in ``dtype``."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def row_elems(self) -> int: ...

    def pack(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """What transformers hands to ``Cache.update``, each ``[B, H, T, D]``, as heads of rows ``[B * T, elems]``."""
        ...

    def split(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of rows ``[..., row_elems]`` as attention sees them: K and V, each ``[..., kv_heads, head_dim]``."""
        ...


@dataclass(frozen=True, slots=True)
class GqaLayout:
    """Keys then values, all KV heads of each; heads of K and V have one size in every supported family."""

    dtype: torch.dtype
    kv_heads: int
    head_dim: int

    @property
    def row_elems(self) -> int:
        return 2 * self.kv_heads * self.head_dim

    def pack(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return torch.cat((_token_rows(first), _token_rows(second)), dim=-1)

    def split(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        heads = rows.unflatten(-1, (2 * self.kv_heads, self.head_dim))
        return heads[..., : self.kv_heads, :], heads[..., self.kv_heads :, :]


@dataclass(frozen=True, slots=True)
class MlaLayout:
    """Latent, rotary key, indexer key. Absorbed attention reads latent and rotary key as one KV head."""

    dtype: torch.dtype
    latent_dim: int
    rope_dim: int
    index_dim: int = 0  # 0: the family has no indexer

    @property
    def row_elems(self) -> int:
        return self.latent_dim + self.rope_dim + self.index_dim

    def pack(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return torch.cat((_token_rows(first), _token_rows(second)), dim=-1)

    def split(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value are the same view: the value's last ``rope_dim`` outputs mean nothing and are cut off later."""
        head = rows[..., None, : self.latent_dim + self.rope_dim]
        return head, head

    def index_keys(self, rows: torch.Tensor) -> torch.Tensor:
        """``[..., index_dim]`` view of the indexer's keys."""
        return rows[..., self.latent_dim + self.rope_dim :]


def row_bytes(layout: KvLayout) -> int:
    return layout.row_elems * layout.dtype.itemsize


def typed_rows(workspace: torch.Tensor, layout: KvLayout) -> torch.Tensor:
    """An engine's ``uint8 [num_rows, row_bytes]``, aligned to the dtype, as ``[num_rows, row_elems]``."""
    _check_bytes(workspace, 2, layout, "workspace")
    return workspace.view(layout.dtype)


def typed_pool(pool: torch.Tensor, layout: KvLayout) -> torch.Tensor:
    """An engine's ``uint8 [blocks, layers, block_tokens, row_bytes]``, aligned, with ``row_elems`` for row_bytes."""
    _check_bytes(pool, 4, layout, "pool")
    return pool.view(layout.dtype)


def _token_rows(states: torch.Tensor) -> torch.Tensor:
    """``[B, H, T, D]`` -> ``[B * T, H * D]``."""
    batch, heads, tokens, dim = states.shape
    return states.transpose(1, 2).reshape(batch * tokens, heads * dim)


def _check_bytes(memory: torch.Tensor, dims: int, layout: KvLayout, what: str) -> None:
    if memory.dtype != torch.uint8 or memory.dim() != dims or memory.shape[-1] != row_bytes(layout):
        raise ValueError(
            f"{what} must be uint8 with {dims} dimensions and rows of {row_bytes(layout)} bytes, "
            f"not {memory.dtype} {tuple(memory.shape)}"
        )
    if not memory.is_contiguous():
        raise ValueError(f"{what} must be contiguous")

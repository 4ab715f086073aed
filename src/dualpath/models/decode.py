"""Decode: one token for every running request, over Full Blocks in the engine's pool, read through block tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dualpath.models.attention import CachedAttention, PagedLayer, Scores
from dualpath.models.kernels.contract import PagedBatch
from dualpath.models.layout import KvLayout, MlaLayout, typed_pool
from dualpath.models.seam import DecodeBatch
from dualpath.models.step import ForwardStep, new_rows, new_states


class DecodeForwardStep(ForwardStep):
    """See ``step.ForwardStep``. B is the batch size, every query a sequence of one token."""

    def __init__(self, batch: DecodeBatch, pool: torch.Tensor, layout: KvLayout, attention: CachedAttention) -> None:
        super().__init__()
        self._layout = layout
        self._attention = attention
        self._pool = typed_pool(pool, layout)  # [num_blocks, num_layers, block_tokens, row_elems]
        self._num_layers, self._block_tokens = self._pool.shape[1:3]
        self._pool_rows = self._pool.view(-1, layout.row_elems)
        lengths = [position + 1 for position in batch.position_list]
        self._paged = PagedBatch(batch.block_table, batch.positions + 1, lengths, self._block_tokens)
        block = batch.block_table.gather(1, (batch.positions // self._block_tokens)[:, None]).squeeze(1).long()
        self._first_layer_row = block * (self._num_layers * self._block_tokens) + batch.positions % self._block_tokens

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        new = new_rows(self._layout, key_states, value_states, self._paged.size, layer_idx)
        self._write(new, layer_idx, first_elem=0)
        return new_states(self._layout, key_states, value_states)

    def update_indexer(
        self, indexer_key_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        layout = self._layout
        assert isinstance(layout, MlaLayout)
        self._write(indexer_key_states[:, 0], layer_idx, first_elem=layout.row_elems - layout.index_dim)
        keys = layout.index_keys(self._pool[:, layer_idx]).index_select(0, self._paged.block_table.flatten())
        context = keys.view(self._paged.size, -1, layout.index_dim)  # [B, max_blocks * block_tokens, index_dim]
        return context[:, : self._paged.max_length]

    def attend(self, module: nn.Module, query: torch.Tensor, scores: Scores) -> tuple[torch.Tensor, torch.Tensor]:
        layer_idx = int(module.layer_idx)  # type: ignore[arg-type]
        layer = PagedLayer(self._pool[:, layer_idx], self._pool_rows, layer_idx, self._num_layers, self._paged)
        out, lse = self._attention.decode(module, query[:, :, 0], layer, scores)
        return out.unsqueeze(1), lse.unsqueeze(1)

    def index_mask(self) -> torch.Tensor:
        """Which keys each indexer may select: bool ``[B, 1, 1, longest context]``."""
        position = torch.arange(self._paged.max_length, device=self._paged.lengths.device)
        return (position < self._paged.lengths[:, None])[:, None, None]

    def _write(self, new: torch.Tensor, layer_idx: int, first_elem: int) -> None:
        columns = self._pool_rows[:, first_elem : first_elem + new.shape[1]]
        columns.index_copy_(0, self._first_layer_row + layer_idx * self._block_tokens, new)

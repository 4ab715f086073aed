"""Layerwise prefill: a packed batch, each new token behind its request's history in the engine's workspace.

All new tokens form one sequence ``[1, T]``; only attention knows where one request ends. A layer's workspace is
acquired when its first new row is written and released when its attention is done, before its MLP runs, so that the
engine can move the next layers meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dualpath.models.attention import CachedAttention, Scores
from dualpath.models.layout import KvLayout, MlaLayout, typed_rows
from dualpath.models.seam import LayerStream, PrefillItem
from dualpath.models.step import ForwardStep, new_rows, new_states


class PrefillStep(ForwardStep):
    """See ``step.ForwardStep``."""

    def __init__(
        self, items: Sequence[PrefillItem], stream: LayerStream, layout: KvLayout, attention: CachedAttention
    ) -> None:
        super().__init__()
        self._items = items
        self._stream = stream
        self._layout = layout
        self._attention = attention
        self._num_new = sum(len(item.token_ids) for item in items)
        self._rows = torch.empty(0)  # [workspace rows, row_elems] of the layer that is being computed

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        new = new_rows(self._layout, key_states, value_states, self._num_new, layer_idx)
        self._rows = typed_rows(self._stream.acquire(layer_idx), self._layout)
        self._write(new, first_elem=0)
        return new_states(self._layout, key_states, value_states)

    def update_indexer(
        self, indexer_key_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        layout = self._layout
        assert isinstance(layout, MlaLayout)
        assert len(self._items) == 1
        self._write(indexer_key_states[0], first_elem=layout.row_elems - layout.index_dim)
        item = self._items[0]
        end = item.row_start + item.num_cached + len(item.token_ids)
        return layout.index_keys(self._rows[item.row_start : end]).unsqueeze(0)

    def attend(self, module: nn.Module, query: torch.Tensor, scores: Scores) -> tuple[torch.Tensor, torch.Tensor]:
        outs, lses, first = [], [], 0
        for item in self._items:
            end = first + len(item.token_ids)
            rows = self._rows[item.row_start : item.row_start + item.num_cached + end - first]
            out, lse = self._attention.prefill(module, query[0, :, first:end], rows, item.num_cached, scores)
            outs.append(out)
            lses.append(lse)
            first = end
        return torch.cat(outs).unsqueeze(0), torch.cat(lses).unsqueeze(0)

    def finish(self, layer_idx: int) -> None:
        self._rows = torch.empty(0)
        self._stream.release(layer_idx)

    def _write(self, new: torch.Tensor, first_elem: int) -> None:
        """New rows ``[T, elems]`` behind each request's history."""
        first = 0
        for item in self._items:
            row, count = item.row_start + item.num_cached, len(item.token_ids)
            self._rows[row : row + count, first_elem : first_elem + new.shape[1]] = new[first : first + count]
            first += count

"""One forward pass as transformers sees it: a cache object, and an attention function that finds it again.

transformers calls, in every layer: ``Cache.update`` with the new keys and values, ``Cache.update_indexer`` in sparse
families, then the attention function registered under ``ATTENTION_NAME``. The function does not get the cache, but it
gets every keyword of the model's forward that transformers does not know: there the same object travels.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, Cache

from dualpath.models.attention import Scores
from dualpath.models.kernels.merge import apply_sinks
from dualpath.models.layout import KvLayout, MlaLayout

ATTENTION_NAME = "dualpath"
STEP_KEYWORD = "dualpath_step"


class ForwardStep(Cache):
    """State of one forward pass. It keeps no tensors of its own: rows live in the engine's memory."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    @abstractmethod
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new rows of a layer. What is returned reaches ``attend`` only, which does not need it."""

    @abstractmethod
    def update_indexer(
        self, indexer_key_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Store the indexer's new keys ``[B, T, D]`` and return all keys of each context, ``[B, context, D]``."""

    @abstractmethod
    def attend(self, module: nn.Module, query: torch.Tensor, scores: Scores) -> tuple[torch.Tensor, torch.Tensor]:
        """query ``[B, Hq, T, D]`` -> out ``[B, T, Hq, Dv]``, lse ``[B, T, Hq]``; the layer is finished after it."""

    def finish(self, layer_idx: int) -> None:
        """Nothing will read or write the layer's rows in this pass any more."""


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    indices: torch.Tensor | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface. Masks are not used: who sees what follows from positions alone."""
    step: ForwardStep = keywords[STEP_KEYWORD]
    out, lse = step.attend(module, query, Scores(scaling, sliding_window, indices))
    if s_aux is not None:
        out = apply_sinks(out, lse, s_aux)
    step.finish(int(module.layer_idx))  # type: ignore[arg-type]
    return out, None


AttentionInterface.register(ATTENTION_NAME, _attention)


def new_rows(
    layout: KvLayout, key_states: torch.Tensor, value_states: torch.Tensor, num_tokens: int, layer_idx: int
) -> torch.Tensor:
    """What ``update`` is given, as ``[num_tokens, row_elems less the indexer's]``. Raises RuntimeError for others."""
    new = layout.pack(key_states, value_states)
    if new.shape[0] != num_tokens or new.dtype != layout.dtype:
        raise RuntimeError(f"layer {layer_idx} caches {new.dtype} {tuple(new.shape)} for {num_tokens} tokens")
    return new


def new_states(
    layout: KvLayout, key_states: torch.Tensor, value_states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``update`` returns. Latent families expand it to keys and values of all heads: give them only one token."""
    if isinstance(layout, MlaLayout):
        return key_states[:1, :, :1], value_states[:1, :, :1]
    return key_states, value_states

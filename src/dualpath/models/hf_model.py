"""A transformers causal language model behind ``seam.Model``: token ids in, logits out, KV in the engine's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from dualpath.models.attention import CachedAttention, GqaAttention
from dualpath.models.decode import DecodeStep
from dualpath.models.kernels import Kernels
from dualpath.models.layout import GqaLayout, KvLayout, MlaLayout
from dualpath.models.mla import MlaAttention
from dualpath.models.prefill import PrefillStep
from dualpath.models.seam import DecodeBatch, LayerStream, ModelSpec, PrefillItem
from dualpath.models.step import STEP_KEYWORD, ForwardStep


class HfModel:
    """See ``seam.Model``. The transformers model must use ``step.ATTENTION_NAME`` as its attention implementation."""

    def __init__(self, spec: ModelSpec, model: PreTrainedModel, layout: KvLayout, kernels: Kernels) -> None:
        self._spec = spec
        self._model = model
        self._layout = layout
        self._kernels = kernels
        self._attention = _attention_for(layout, kernels)
        self._sparse = isinstance(layout, MlaLayout) and layout.index_dim > 0

    def share(self) -> HfModel:
        """The same weights for another worker thread: a forward's state lives in its step object, not in here."""
        return HfModel(self._spec, self._model, self._layout, self._kernels)

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def device(self) -> torch.device:
        return torch.device(self._model.device)

    @property
    def lost(self) -> str | None:
        return None

    def prefill(self, items: Sequence[PrefillItem], stream: LayerStream) -> torch.Tensor:
        self.check(items)
        with torch.inference_mode():
            logits = self._prefill(items, stream)
        return _normal_float32(logits)

    def decode(self, batch: DecodeBatch, pool: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            step = DecodeStep(batch, pool, self._layout, self._attention)
            mask = step.index_mask() if self._sparse else None
            logits = self._forward(step, batch.token_ids[:, None], batch.positions[:, None], mask, 0)[:, -1]
        return _normal_float32(logits)

    def _prefill(self, items: Sequence[PrefillItem], stream: LayerStream) -> torch.Tensor:
        step = PrefillStep(items, stream, self._layout, self._attention)
        token_ids = [token for item in items for token in item.token_ids]
        positions = [item.num_cached + i for item in items for i in range(len(item.token_ids))]
        last, ends = -1, []
        for item in items:
            last += len(item.token_ids)
            ends.append(last)
        mask = self._causal_mask(items[0]) if self._sparse else None
        return self._forward(step, self._ids([token_ids]), self._ids([positions]), mask, self._ids(ends))[0]

    def _forward(
        self,
        step: ForwardStep,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        logits_to_keep: torch.Tensor | int,
    ) -> torch.Tensor:
        keywords: dict[str, Any] = {STEP_KEYWORD: step, "logits_to_keep": logits_to_keep}
        output = self._model(
            input_ids=token_ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=step,
            use_cache=True,
            **keywords,
        )
        logits: torch.Tensor = output.logits
        return logits

    def _causal_mask(self, item: PrefillItem) -> torch.Tensor:
        """Which keys the indexer may select: bool ``[1, 1, new, context]``. Dense families need no mask."""
        position = torch.arange(item.num_cached + len(item.token_ids), device=self.device)
        return (position <= position[item.num_cached :, None])[None, None]

    def _ids(self, ids: Any) -> torch.Tensor:
        return torch.tensor(ids, dtype=torch.int64, device=self.device)

    def check(self, items: Sequence[PrefillItem]) -> None:
        """Raises ValueError for a batch that ``prefill`` does not take."""
        limit = self._spec.max_requests_per_forward
        if not items or (limit is not None and len(items) > limit):
            raise ValueError(f"{self._spec.family} prefills 1 to {limit or 'any number of'} requests, not {len(items)}")
        for item in items:
            if not item.token_ids or item.num_cached < 0 or item.row_start < 0:
                raise ValueError("a prefill item needs a new token, and no negative counts")


def _normal_float32(logits: torch.Tensor) -> torch.Tensor:
    """A copy that callers may change in place: tensors made in inference mode refuse that elsewhere."""
    return torch.empty(logits.shape, dtype=torch.float32, device=logits.device).copy_(logits)


def _attention_for(layout: KvLayout, kernels: Kernels) -> CachedAttention:
    if isinstance(layout, GqaLayout):
        return GqaAttention(layout, kernels)
    if isinstance(layout, MlaLayout):
        return MlaAttention(layout, kernels)
    raise TypeError(f"no attention for {type(layout).__name__}")

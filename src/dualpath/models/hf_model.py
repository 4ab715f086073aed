"""A transformers causal language model behind ``seam.Model``: token ids in, logits out, KV in the engine's memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from dualpath.models.attention import CachedAttention, GqaAttention
from dualpath.models.decode import DecodeForwardStep
from dualpath.models.decode_graphs import Capture, DecodeGraphs, capture_for, try_capture
from dualpath.models.fingerprint import without_cosmetics
from dualpath.models.kernels.contract import Kernels
from dualpath.models.layout import GqaLayout, KvLayout, MlaLayout
from dualpath.models.mla import MlaAttention
from dualpath.models.packed import packed_weights
from dualpath.models.prefill import PrefillStep
from dualpath.models.seam import DecodeBatch, GraphLimits, LayerStream, ModelSpec, PrefillItem
from dualpath.models.step import STEP_KEYWORD, ForwardStep

_NO_COMPUTATION = {"architectures", "dtype", "torch_dtype", "use_cache", "quantization_config"}  # of config.json


class HfModel:
    """See ``seam.Model``. The transformers model must use ``step.ATTENTION_NAME`` as its attention implementation."""

    def __init__(
        self, spec: ModelSpec, model: PreTrainedModel, layout: KvLayout, kernels: Kernels, world: int = 1
    ) -> None:
        """``world``: processes that share its heads."""
        self._spec, self._world = spec, world
        self._model = model
        self._layout = layout
        self._graphs: DecodeGraphs | None = None
        self._kernels = kernels
        self._attention = _attention_for(layout, kernels)
        self._sparse = isinstance(layout, MlaLayout) and layout.index_dim > 0
        shapes = self._attention.shapes(model.config, model.config.num_attention_heads // world)
        self.kernel_paths = kernels.prepare(shapes)  # by shape; tried now, while there is memory

    def share(self) -> HfModel:
        """The same weights for another worker thread: a forward's state lives in its step object, not in here."""
        return HfModel(self._spec, self._model, self._layout, self._kernels, self._world)

    def overwrite(self, other: HfModel) -> None:
        """Our weights, in place, by those of a model of the same kind on any device. Blocks; no forward is running."""
        own, new = self._model.state_dict(), other._model.state_dict()
        packed = packed_weights(self._model)
        with torch.no_grad():
            for name, tensor in own.items():
                if name in packed:
                    packed[name].overwrite(new[name])
                else:
                    tensor.copy_(new[name])
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # forwards have streams of their own

    def with_spec(self, spec: ModelSpec) -> HfModel:
        """The same, what was captured included, where the weights are others now."""
        other = copy.copy(self)
        other._spec = spec
        return other

    def tensors(self) -> dict[str, torch.Size]:
        """Names and shapes of its weights."""
        return {name: tensor.shape for name, tensor in self._model.state_dict().items()}

    def config(self) -> dict[str, Any]:
        """What it computes by beside its weights: rotary positions, windows, norms."""
        found = json.loads(self._model.config.to_json_string(use_diff=False))
        kept: dict[str, Any] = without_cosmetics({k: v for k, v in found.items() if k not in _NO_COMPUTATION})
        return kept

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
            logits = None if self._graphs is None else self._graphs.run(batch, pool)
            if logits is None:
                logits = self._decode(batch, pool)
        return _normal_float32(logits)

    def capture_decode(self, pool: torch.Tensor, limits: GraphLimits, capture: Capture | None = None) -> bool:
        """See ``seam.CapturesDecode``. ``capture``: the device's own unless given."""
        with torch.inference_mode():
            found = capture or capture_for(self.device)
            if found is not None:
                self._graphs = try_capture(self._spec.family, self._decode, pool, limits, found)
        return self._graphs is not None

    def _decode(self, batch: DecodeBatch, pool: torch.Tensor) -> torch.Tensor:
        step = DecodeForwardStep(batch, pool, self._layout, self._attention)
        mask = step.index_mask() if self._sparse else None
        return self._forward(step, batch.token_ids[:, None], batch.positions[:, None], mask, 0)[:, -1]

    def _prefill(self, items: Sequence[PrefillItem], stream: LayerStream) -> torch.Tensor:
        step = PrefillStep(items, stream, self._layout, self._attention)
        token_ids = [token for item in items for token in item.token_ids]
        positions = [item.num_cached + i for item in items for i in range(len(item.token_ids))]
        last = -1
        ends: list[int] = []
        for item in items:
            last += len(item.token_ids)
            ends += range(last + 1 - item.num_logits, last + 1)
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
            if not 1 <= item.num_logits <= len(item.token_ids):
                raise ValueError("logits come after new tokens, at least after the last")


def _normal_float32(logits: torch.Tensor) -> torch.Tensor:
    """A copy that callers may change in place: tensors made in inference mode refuse that elsewhere."""
    return torch.empty(logits.shape, dtype=torch.float32, device=logits.device).copy_(logits)


def _attention_for(layout: KvLayout, kernels: Kernels) -> CachedAttention:
    if isinstance(layout, GqaLayout):
        return GqaAttention(layout, kernels)
    if isinstance(layout, MlaLayout):
        return MlaAttention(layout, kernels)
    raise TypeError(f"no attention for {type(layout).__name__}")

"""The seam between an engine and a model: what a model needs for one forward pass, and what it gives back.

An engine owns memory and decides *what* runs; a model owns mathematics and the meaning of the bytes in a Layer Block.
Neither knows the other beyond these types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from dualpath.core.geometry import KvGeometry
from dualpath.core.weights import Weights


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What the rest of the system may know of a loaded model."""

    name: str  # served model name: the directory's base name
    family: str  # transformers' model_type, e.g. "llama"
    fingerprint: str  # hex; identifies architecture and weights, see dualpath.models.fingerprint
    num_layers: int
    bytes_per_token_layer: int  # one token's KV row in one layer, in bytes
    kv_dtype: torch.dtype
    vocab_size: int
    max_context_tokens: int  # prompt + generated
    eos_token_ids: tuple[int, ...]
    max_requests_per_forward: int | None = None  # prefill only; sparse-attention models take 1

    def geometry(self, block_tokens: int) -> KvGeometry:
        return KvGeometry(self.num_layers, block_tokens, self.bytes_per_token_layer)


@dataclass(frozen=True, slots=True)
class PrefillItem:
    """One request's part of a packed prefill batch.

    Rows ``[row_start, row_start + num_cached)`` of every layer's workspace hold the history when the layer is acquired;
    the model writes rows ``[row_start + num_cached, row_start + num_cached + len(token_ids))``.
    """

    token_ids: Sequence[int]  # the new tokens, at least one
    num_cached: int  # tokens of history before them, any number >= 0
    row_start: int  # first workspace row of the request, a multiple of block_tokens
    num_logits: int = 1  # of the last new tokens: what may come after each is wanted; at least 1


class LayerStream(Protocol):
    """The engine's side of layerwise prefill. Called on the model's worker thread, once per layer, in order."""

    def acquire(self, layer: int) -> torch.Tensor:
        """Block until layer ``layer``'s history rows have landed, then return the layer's workspace.

        Returns ``uint8 [num_rows, bytes_per_token_layer]``, contiguous, on the model's device. The memory stays the
        model's until ``release(layer)``; at most two layers are acquired or loading at any time.
        Raises TransferError or DeadlineExceededError when the history cannot be had.
        """
        ...

    def release(self, layer: int) -> None:
        """Hand the layer back: its new rows are written (stream-ordered on CUDA) and nothing will touch it again."""
        ...


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """One token for each of B requests. All tensors live on the model's device."""

    token_ids: torch.Tensor  # int64 [B]: the token whose KV is computed now
    positions: torch.Tensor  # int64 [B]: its position = number of tokens already in the pool for that request
    block_table: torch.Tensor  # int32 [B, max_blocks]: pool block of each of the request's blocks; padded with 0
    block_lists: Sequence[Sequence[int]]  # the same without padding, as Python ints (host-side fast paths)
    position_list: Sequence[int]  # positions as Python ints


@dataclass(frozen=True, slots=True)
class GraphLimits:
    """What decode graphs must do for."""

    max_requests: int
    max_blocks: int  # of one request
    block_tokens: int
    scratch_block: int  # of the pool, nobody's: rows that pad a batch write there


@runtime_checkable
class CapturesDecode(Protocol):
    """A model whose decode steps can be captured in graphs."""

    def capture_decode(self, pool: torch.Tensor, limits: GraphLimits) -> bool:
        """Capture steps over this pool, which ``decode`` takes from then on. False: it could not be, and a warning
        has said why. Model thread, before the first step."""
        ...


class WeightUpdates(Protocol):
    """Other weights for the models of a process, loaded beside those in use. Any thread; all of it blocks."""

    def load(self, weights: Weights) -> str:
        """Returns their fingerprint. Raises ConfigError where they cannot take the place of those in use."""
        ...

    def take(self, weights: Weights, model: Model) -> Model:
        """``model`` with the loaded weights, for one engine: on its model thread, while no forward runs.

        Raises ConfigError where they have not been loaded.
        """
        ...

    def drop(self, weights: Weights) -> None: ...


class Model(Protocol):
    """A loaded model. Not thread-safe: one worker thread per model. Loading is ``dualpath.models.load``."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def lost(self) -> str | None:
        """Why no forward will ever run again in this process; None where they do."""
        ...

    def prefill(self, items: Sequence[PrefillItem], stream: LayerStream) -> torch.Tensor:
        """Run one packed forward over all items' new tokens.

        Calls ``stream.acquire(l)`` and ``stream.release(l)`` exactly once for l = 0..num_layers-1, in order.
        Returns float32 logits ``[rows, vocab_size]`` after each item's last ``num_logits`` new tokens, item by item. If
        the forward or the stream raises, the exception propagates and the model remains usable.
        """
        ...

    def decode(self, batch: DecodeBatch, pool: torch.Tensor) -> torch.Tensor:
        """Write each request's new KV row into the pool, attend, and return float32 logits ``[B, vocab_size]``.

        ``pool`` is ``uint8 [num_blocks, num_layers, block_tokens, bytes_per_token_layer]`` on the model's device: Full
        Blocks byte for byte. Results for one request do not depend on the others in fp32.
        """
        ...

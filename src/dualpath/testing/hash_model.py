"""A model without weights: its KV is a hash chain, and its next token depends on every byte of KV that it is given.

So any byte that is wrong, stale, missing or in the wrong place makes another token (all but one time in a thousand, and
the next one all but certainly), and the right answer to every prompt is known beforehand, without any engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from dualpath.core.errors import ConfigError
from dualpath.core.geometry import KvGeometry
from dualpath.core.keys import Namespace
from dualpath.core.weights import Weights
from dualpath.models.seam import DecodeBatch, LayerStream, Model, ModelSpec, PrefillItem
from dualpath.testing.runtime import VirtualRuntime
from dualpath.testing.weights import BROKEN

NUM_LAYERS, BLOCK_TOKENS, ROW_BYTES, VOCAB = 3, 4, 8, 997
SPEC = ModelSpec("hash", "hash", "0" * 32, NUM_LAYERS, ROW_BYTES, torch.float32, VOCAB, 100_000, ())
GEOMETRY = KvGeometry(NUM_LAYERS, BLOCK_TOKENS, ROW_BYTES)
NAMESPACE = Namespace(SPEC.fingerprint, "float32", GEOMETRY, "cpu")

_LAYER_S, _STEP_S = (5e-4, 1e-2), (1e-3, 1e-2)  # half of what compute takes, in virtual time


def _hash(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=ROW_BYTES).digest()


def spec_of(weights: str = "") -> ModelSpec:
    """``weights``: what sets them apart from all others; none: those of the start."""
    return replace(SPEC, fingerprint=weights.rjust(32, "0"))


def namespace_of(weights: str = "") -> Namespace:
    return replace(NAMESPACE, model_fingerprint=spec_of(weights).fingerprint)


def grow(last_row: bytes, token_ids: Sequence[int], layer: int, weights: str = "") -> list[bytes]:
    """KV rows of the tokens that follow ``last_row`` (empty: none before) in one layer."""
    rows = []
    for token_id in token_ids:
        last_row = _hash(last_row, int(token_id).to_bytes(4, "little"), bytes([layer]), weights.encode())
        rows.append(last_row)
    return rows


def next_token(layers: Sequence[bytes], weights: str = "") -> int:
    """From the whole KV of a sequence, layer by layer."""
    return int.from_bytes(_hash(*layers, weights.encode()), "little") % VOCAB


class Truth:
    """What is right, remembered for sequences that grow."""

    def __init__(self) -> None:
        self._kv = lru_cache(maxsize=4096)(self._make_kv)

    def kv(self, token_ids: tuple[int, ...], weights: str = "") -> tuple[bytes, ...]:
        """KV of a sequence: one string of rows for each layer."""
        return self._kv(token_ids, weights)

    def answer(self, prompt: Sequence[int], num_tokens: int, weights: str = "") -> list[int]:
        tokens = list(prompt)
        for _ in range(num_tokens):
            tokens.append(self.next_token(tuple(tokens), weights))
        return tokens[len(prompt) :]

    def next_token(self, token_ids: tuple[int, ...], weights: str = "") -> int:
        return next_token(self.kv(token_ids, weights), weights)

    def block(self, token_ids: tuple[int, ...], index: int, weights: str = "") -> bytes:
        """The payload of the sequence's Full Block ``index``."""
        start, end = index * BLOCK_TOKENS * ROW_BYTES, (index + 1) * BLOCK_TOKENS * ROW_BYTES
        return b"".join(layer[start:end] for layer in self.kv(token_ids[: (index + 1) * BLOCK_TOKENS], weights))

    def _make_kv(self, token_ids: tuple[int, ...], weights: str) -> tuple[bytes, ...]:
        if not token_ids:
            return (b"",) * NUM_LAYERS
        before = self.kv(token_ids[:-1], weights) if len(token_ids) % 64 else self._from_start(token_ids[:-1], weights)
        return tuple(
            rows + grow(rows[-ROW_BYTES:], token_ids[-1:], layer, weights)[0] for layer, rows in enumerate(before)
        )

    def _from_start(self, token_ids: tuple[int, ...], weights: str) -> tuple[bytes, ...]:
        """Without recursion, so that a long prompt does not end it."""
        return tuple(b"".join(grow(b"", token_ids, layer, weights)) for layer in range(NUM_LAYERS))


class HashModel:
    """``dualpath.models.seam.Model``, one for each engine. Its compute takes virtual time."""

    device = torch.device("cpu")
    lost: str | None = None

    def __init__(self, runtime: VirtualRuntime, scale: float = 1.0, weights: str = "") -> None:
        self._runtime, self._scale, self.weights = runtime, scale, weights
        self.spec = spec_of(weights)

    def prefill(self, items: Sequence[PrefillItem], stream: LayerStream) -> torch.Tensor:
        self.begin_forward()
        kv: list[list[bytes]] = [[] for _ in items]
        for layer in range(NUM_LAYERS):
            rows = stream.acquire(layer).numpy()
            self._compute(_LAYER_S)  # what is read and written too late or too early is found out
            for item, layers in zip(items, kv, strict=True):
                first, end = item.row_start, item.row_start + item.num_cached
                history = rows[first:end].tobytes()
                new = b"".join(grow(history[-ROW_BYTES:], item.token_ids, layer, self.weights))
                rows[end : end + len(item.token_ids)] = _rows(new)
                layers.append(history + new)
            self._compute(_LAYER_S)
            stream.release(layer)
        ends = [
            [layer[: len(layer) - back * ROW_BYTES] for layer in layers]
            for item, layers in zip(items, kv, strict=True)
            for back in reversed(range(item.num_logits))
        ]
        return _logits([next_token(layers, self.weights) for layers in ends])

    def decode(self, batch: DecodeBatch, pool: torch.Tensor) -> torch.Tensor:
        self.begin_forward()
        self._compute(_STEP_S)
        memory = pool.numpy()  # uint8 [blocks, layers, block tokens, row bytes]
        tokens = []
        for token_id, position, blocks in zip(
            batch.token_ids.tolist(), batch.position_list, batch.block_lists, strict=True
        ):
            layers = []
            for layer in range(NUM_LAYERS):
                history = memory[blocks, layer].reshape(-1, ROW_BYTES)[:position].tobytes()
                (new,) = grow(history[-ROW_BYTES:], [token_id], layer, self.weights)
                memory[blocks[position // BLOCK_TOKENS], layer, position % BLOCK_TOKENS] = _rows(new)[0]
                layers.append(history + new)
            tokens.append(next_token(layers, self.weights))
        self._compute(_STEP_S)
        return _logits(tokens)

    def begin_forward(self) -> None:
        """For whoever watches."""

    def with_weights(self, weights: str) -> HashModel:
        return HashModel(self._runtime, self._scale, weights)

    def _compute(self, takes_s: tuple[float, float]) -> None:
        self._runtime.block_s(self._scale * self._runtime.chance.uniform(*takes_s))


class HashUpdates:
    """``models.seam.WeightUpdates``: a directory's last part is its weights. Loading takes virtual time, or fails."""

    def __init__(self, runtime: VirtualRuntime) -> None:
        self._runtime = runtime
        self._loaded: dict[Weights, str] = {}

    def load(self, weights: Weights) -> str:
        self._runtime.block_s(self._runtime.chance.uniform(0, 0.3))
        name = weights.directory.rpartition("/")[2]
        if name == BROKEN:
            raise ConfigError(f"{weights.directory}: no weights")
        self._loaded[weights] = name
        return spec_of(name).fingerprint

    def take(self, weights: Weights, model: Model) -> Model:
        if weights not in self._loaded:
            raise ConfigError("not loaded")
        self._runtime.block_s(self._runtime.chance.uniform(0, 0.01))
        assert isinstance(model, HashModel)
        return model.with_weights(self._loaded[weights])

    def drop(self, weights: Weights) -> None:
        self._loaded.pop(weights, None)


def _rows(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, ROW_BYTES)


def _logits(tokens: Sequence[int]) -> torch.Tensor:
    out = torch.zeros(len(tokens), VOCAB)
    out[torch.arange(len(tokens)), torch.tensor(tokens)] = 1.0
    return out

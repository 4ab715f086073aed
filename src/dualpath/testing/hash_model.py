"""A model without weights: its KV is a hash chain, and its next token depends on every byte of KV that it is given.

So any byte that is wrong, stale, missing or in the wrong place makes another token (all but one time in a thousand, and
the next one all but certainly), and the right answer to every prompt is known beforehand, without any engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from dualpath.core.geometry import KvGeometry
from dualpath.core.keys import Namespace
from dualpath.models.seam import DecodeBatch, LayerStream, ModelSpec, PrefillItem
from dualpath.testing.runtime import VirtualRuntime

NUM_LAYERS, BLOCK_TOKENS, ROW_BYTES, VOCAB = 3, 4, 8, 997
SPEC = ModelSpec("hash", "hash", "0" * 32, NUM_LAYERS, ROW_BYTES, torch.float32, VOCAB, 100_000, ())
GEOMETRY = KvGeometry(NUM_LAYERS, BLOCK_TOKENS, ROW_BYTES)
NAMESPACE = Namespace(SPEC.fingerprint, "float32", GEOMETRY, "cpu")

_LAYER_S, _STEP_S = (5e-4, 1e-2), (1e-3, 1e-2)  # half of what compute takes, in virtual time


def _hash(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=ROW_BYTES).digest()


def grow(last_row: bytes, token_ids: Sequence[int], layer: int) -> list[bytes]:
    """KV rows of the tokens that follow ``last_row`` (empty: none before) in one layer."""
    rows = []
    for token_id in token_ids:
        last_row = _hash(last_row, int(token_id).to_bytes(4, "little"), bytes([layer]))
        rows.append(last_row)
    return rows


def next_token(layers: Sequence[bytes]) -> int:
    """From the whole KV of a sequence, layer by layer."""
    return int.from_bytes(_hash(*layers), "little") % VOCAB


class Truth:
    """What is right, remembered for sequences that grow."""

    def __init__(self) -> None:
        self._kv = lru_cache(maxsize=4096)(self._make_kv)

    def kv(self, token_ids: tuple[int, ...]) -> tuple[bytes, ...]:
        """KV of a sequence: one string of rows for each layer."""
        return self._kv(token_ids)

    def answer(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(num_tokens):
            tokens.append(next_token(self.kv(tuple(tokens))))
        return tokens[len(prompt) :]

    def block(self, token_ids: tuple[int, ...], index: int) -> bytes:
        """The payload of the sequence's Full Block ``index``."""
        start, end = index * BLOCK_TOKENS * ROW_BYTES, (index + 1) * BLOCK_TOKENS * ROW_BYTES
        return b"".join(layer[start:end] for layer in self.kv(token_ids[: (index + 1) * BLOCK_TOKENS]))

    def _make_kv(self, token_ids: tuple[int, ...]) -> tuple[bytes, ...]:
        if not token_ids:
            return (b"",) * NUM_LAYERS
        before = self.kv(token_ids[:-1]) if len(token_ids) % 64 else self._from_start(token_ids[:-1])
        return tuple(rows + grow(rows[-ROW_BYTES:], token_ids[-1:], layer)[0] for layer, rows in enumerate(before))

    def _from_start(self, token_ids: tuple[int, ...]) -> tuple[bytes, ...]:
        """Without recursion, so that a long prompt does not end it."""
        return tuple(b"".join(grow(b"", token_ids, layer)) for layer in range(NUM_LAYERS))


class HashModel:
    """``dualpath.models.seam.Model``, one for each engine. Its compute takes virtual time."""

    spec = SPEC
    device = torch.device("cpu")
    lost: str | None = None

    def __init__(self, runtime: VirtualRuntime, scale: float = 1.0) -> None:
        self._runtime, self._scale = runtime, scale

    def prefill(self, items: Sequence[PrefillItem], stream: LayerStream) -> torch.Tensor:
        kv: list[list[bytes]] = [[] for _ in items]
        for layer in range(NUM_LAYERS):
            rows = stream.acquire(layer).numpy()
            self._compute(_LAYER_S)  # what is read and written too late or too early is found out
            for item, layers in zip(items, kv, strict=True):
                first, end = item.row_start, item.row_start + item.num_cached
                history = rows[first:end].tobytes()
                new = b"".join(grow(history[-ROW_BYTES:], item.token_ids, layer))
                rows[end : end + len(item.token_ids)] = _rows(new)
                layers.append(history + new)
            self._compute(_LAYER_S)
            stream.release(layer)
        return _logits([next_token(layers) for layers in kv])

    def decode(self, batch: DecodeBatch, pool: torch.Tensor) -> torch.Tensor:
        self._compute(_STEP_S)
        memory = pool.numpy()  # uint8 [blocks, layers, block tokens, row bytes]
        tokens = []
        for token_id, position, blocks in zip(
            batch.token_ids.tolist(), batch.position_list, batch.block_lists, strict=True
        ):
            layers = []
            for layer in range(NUM_LAYERS):
                history = memory[blocks, layer].reshape(-1, ROW_BYTES)[:position].tobytes()
                (new,) = grow(history[-ROW_BYTES:], [token_id], layer)
                memory[blocks[position // BLOCK_TOKENS], layer, position % BLOCK_TOKENS] = _rows(new)[0]
                layers.append(history + new)
            tokens.append(next_token(layers))
        self._compute(_STEP_S)
        return _logits(tokens)

    def _compute(self, takes_s: tuple[float, float]) -> None:
        self._runtime.block_s(self._scale * self._runtime.chance.uniform(*takes_s))


def _rows(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, ROW_BYTES)


def _logits(tokens: Sequence[int]) -> torch.Tensor:
    out = torch.zeros(len(tokens), VOCAB)
    out[torch.arange(len(tokens)), torch.tensor(tokens)] = 1.0
    return out

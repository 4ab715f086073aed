"""Block keys: a chain of hashes, so that a key names a whole prefix and not just one block's tokens.

key_i = BLAKE2b-128 of the block's token ids (int32), keyed with key_{i-1}; key_{-1} = namespace digest and tenant salt.
Equal keys on any machine, process and seed; a different model, dtype, block size or tenant never meets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey

KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Namespace:
    """Everything that must be equal for stored KV to be usable."""

    model_fingerprint: str
    kv_dtype: str
    geometry: KvGeometry
    numerics: str  # how the KV was computed, e.g. "cpu" or "cuda-flash"
    layout: str = "rows-k-v"  # what an engine puts inside a Layer Block

    @property
    def digest(self) -> bytes:
        g = self.geometry
        text = "\x1f".join(
            [
                "dualpath-kv-1",
                self.model_fingerprint,
                self.kv_dtype,
                f"{g.num_layers}x{g.block_tokens}x{g.bytes_per_token_layer}",
                self.numerics,
                self.layout,
            ]
        )
        return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest()


def root_key(namespace: Namespace, cache_salt: str = "") -> BlockKey:
    """The parent of every first block. A tenant's salt keeps its blocks apart from everybody else's."""
    return BlockKey(hashlib.blake2b(cache_salt.encode(), key=namespace.digest, digest_size=KEY_BYTES).digest())


def child_key(parent: BlockKey, token_ids: Sequence[int] | np.ndarray) -> BlockKey:
    """Key of the Full Block with these tokens behind the prefix ``parent``."""
    data = np.asarray(token_ids, dtype="<i4").tobytes()
    return BlockKey(hashlib.blake2b(data, key=parent, digest_size=KEY_BYTES).digest())


def chain_keys(parent: BlockKey, token_ids: Sequence[int] | np.ndarray, block_tokens: int) -> list[BlockKey]:
    """Keys of all complete blocks of ``token_ids``, the first one's parent being ``parent``."""
    tokens = np.asarray(token_ids, dtype="<i4")
    keys = []
    for start in range(0, len(tokens) - block_tokens + 1, block_tokens):
        parent = child_key(parent, tokens[start : start + block_tokens])
        keys.append(parent)
    return keys

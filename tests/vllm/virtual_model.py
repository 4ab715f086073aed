"""A model of hashes: a row of its KV is one of all tokens up to it and of its weights, so whoever has it can tell."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import xxhash

LAYERS, BLOCK, CONTENT = 3, 64, 2


def rows(token_ids: Sequence[int], layer: int, weights: str = "", rank: int = 0) -> np.ndarray:
    """float32 [tokens, content]: the KV of a layer, as a rank has it. ``weights``: a name of them."""
    crc, found = zlib.crc32(weights.encode()), []
    for token in token_ids:
        crc = zlib.crc32(struct.pack("<i", token), crc)
        found.append((crc & 0xFFFF, crc >> 16))
    return np.array(found, dtype=np.float32).reshape(-1, CONTENT) + layer + rank / 4


def next_token(token_ids: Sequence[int], weights: str = "") -> int:
    crc = zlib.crc32(weights.encode())
    for token in token_ids:
        crc = zlib.crc32(struct.pack("<i", token), crc)
    return crc % 1000


def digests(tokens: Sequence[int], weights: str, rank: int = 0) -> list[int]:
    """Of a block's layers, the last of these tokens'."""
    layers = [np.ascontiguousarray(rows(tokens, layer, weights, rank)[-BLOCK:]) for layer in range(LAYERS)]
    return [xxhash.xxh3_64_intdigest(layer.tobytes()) for layer in layers]

"""Block keys: a chain of hashes, so that a key names a whole prefix and not just one block's tokens.

key_i = BLAKE2b-128 of the block's token ids (int32), keyed with key_{i-1}; key_{-1} = namespace digest and tenant salt.
Equal keys on any machine, process and seed; a different model, dtype, block size or tenant never meets.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey

KEY_BYTES = 16
_RUN_BLOCKS = 16
_RUN_NAME_BYTES = 32


@dataclass(frozen=True, slots=True)
class Namespace:
    """Everything that must be equal for stored KV to be usable."""

    model_fingerprint: str
    kv_dtype: str
    geometry: KvGeometry
    numerics: str  # how the KV was computed, e.g. "cpu" or "cuda-flash"
    layout: str = "rows-k-v"  # what an engine puts inside a Layer Block
    num_ranks: int = 1  # of a tensor-parallel engine: each stores its part of a block under a name of its own

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

    def parts(self) -> tuple[Namespace, ...]:
        """Whose objects a block consists of: each rank's, or this one's. Their blocks' keys are those of this one."""
        if self.num_ranks == 1:
            return (self,)
        whole = self.geometry
        part = replace(whole, bytes_per_token_layer=whole.bytes_per_token_layer // self.num_ranks)
        layouts = [f"{self.layout}-r{rank}" for rank in range(self.num_ranks)]
        return tuple(replace(self, geometry=part, layout=layout, num_ranks=1) for layout in layouts)

    def part(self, rank: int) -> Namespace:
        """That rank's; where ranks have the same KV, or there is one, this one."""
        return self.parts()[rank if self.num_ranks > 1 else 0]


def root_key(namespace: Namespace, cache_salt: str = "") -> BlockKey:
    """The parent of every first block. A tenant's salt keeps its blocks apart from everybody else's."""
    return BlockKey(hashlib.blake2b(cache_salt.encode(), key=namespace.digest, digest_size=KEY_BYTES).digest())


def child_key(parent: BlockKey, token_ids: Sequence[int]) -> BlockKey:
    """Key of the Full Block with these tokens behind the prefix ``parent``."""
    return BlockKey(hashlib.blake2b(_packed(token_ids), key=parent, digest_size=KEY_BYTES).digest())


def chain_keys(parent: BlockKey, token_ids: Sequence[int], block_tokens: int) -> list[BlockKey]:
    """Keys of all complete blocks of ``token_ids``, the first one's parent being ``parent``."""
    return _chain(parent, memoryview(_packed(token_ids)), 4 * block_tokens)


class KnownPrefixes:
    """``chain_keys`` for prompts that begin as earlier ones did: what is known is found, 16 blocks at a time.

    A run of blocks is known by a hash of its own, behind the key before it, which names all that came before. The least
    recently used runs are forgotten. Not thread-safe.
    """

    def __init__(self, block_tokens: int, max_runs: int = 1 << 16) -> None:
        self._block_bytes = 4 * block_tokens
        self._run_bytes = _RUN_BLOCKS * self._block_bytes
        self._max_runs = max_runs
        self._runs: OrderedDict[bytes, list[BlockKey]] = OrderedDict()
        self.num_hashed_blocks = 0  # so far, one by one

    def keys(self, parent: BlockKey, token_ids: Sequence[int]) -> list[BlockKey]:
        """As ``chain_keys``."""
        data, keys, runs = memoryview(_packed(token_ids)), [], self._runs
        start, run_bytes = 0, self._run_bytes
        while start + run_bytes <= len(data):
            run = data[start : start + run_bytes]
            name = hashlib.blake2b(run, key=parent, digest_size=_RUN_NAME_BYTES, person=b"run").digest()
            found = runs.get(name)
            if found is None:
                found = runs[name] = self._hashed(parent, run)
                if len(runs) > self._max_runs:
                    runs.popitem(last=False)
            else:
                runs.move_to_end(name)
            keys += found
            parent, start = found[-1], start + run_bytes
        return keys + self._hashed(parent, data[start:])

    def _hashed(self, parent: BlockKey, data: memoryview) -> list[BlockKey]:
        keys = _chain(parent, data, self._block_bytes)
        self.num_hashed_blocks += len(keys)
        return keys


def _packed(token_ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(token_ids)}i", *token_ids)


def _chain(parent: BlockKey, data: memoryview, block_bytes: int) -> list[BlockKey]:
    hashed, keys = hashlib.blake2b, []
    for start in range(0, len(data) - block_bytes + 1, block_bytes):
        block = data[start : start + block_bytes]
        parent = BlockKey(hashed(block, key=parent, digest_size=KEY_BYTES).digest())
        keys.append(parent)
    return keys

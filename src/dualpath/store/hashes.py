"""The hash functions of blocks: xxHash, or BLAKE2 where it is not installed. ``header.verify`` verifies by them.

The two do not read each other's blocks: the version in a header says whose digests it has. BLAKE2 is some ten times
slower, and there so that a bare box can be measured (``dualpath gpu check``); a server's environment has xxHash.
"""

from __future__ import annotations

import hashlib
import importlib
from typing import Any, TypeAlias


def _load() -> Any:
    try:
        return importlib.import_module("xxhash")
    except ImportError:
        return None


_xxhash = _load()
Bytes: TypeAlias = bytes | bytearray | memoryview
HAS_XXHASH = _xxhash is not None
OTHER_DIGESTS = 1 << 31  # in a header's version


def digest_64(data: Bytes) -> int:
    if _xxhash is not None:
        digest: int = _xxhash.xxh3_64_intdigest(data)
        return digest
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def digest_128(data: Bytes) -> bytes:
    if _xxhash is not None:
        digest: bytes = _xxhash.xxh3_128_digest(data)
        return digest
    return hashlib.blake2b(data, digest_size=16).digest()

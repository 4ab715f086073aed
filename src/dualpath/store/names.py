"""Names of blocks in storage: the same in a directory and in a bucket, so that one may be a copy of the other."""

from __future__ import annotations

from dualpath.core.ids import BlockKey
from dualpath.core.keys import KEY_BYTES

SUFFIX = ".kv"


def block_name(namespace_digest: bytes, key: BlockKey) -> str:
    """``<namespace digest>/<first 2 hex digits>/<32 hex digits>.kv``"""
    digits = key.hex()
    return f"{namespace_digest.hex()}/{digits[:2]}/{digits}{SUFFIX}"


def parse_key(name: str) -> BlockKey | None:
    """The key of a complete object, from the last part of its name; None for every other name."""
    digits = name.removesuffix(SUFFIX)
    if digits == name or len(digits) != 2 * KEY_BYTES or not set(digits) <= set("0123456789abcdef"):
        return None
    return BlockKey(bytes.fromhex(digits))

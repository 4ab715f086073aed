"""Blocks as S3 objects: one immutable object per block, named as a file store names its files.

``<prefix>/<namespace digest>/<first 2 hex digits>/<32 hex digits>.kv``, so a directory of blocks that is copied into a
bucket is the same store. One write is one PUT, which S3 makes visible whole or not at all; two writers of a key both
succeed and the last stays. Data moves by NIXL (dualpath.store.s3.transfers), the directory by obstore.
"""

from __future__ import annotations

from collections.abc import Iterator

from dualpath.core.errors import BlockCorruptError, BlockMissingError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey
from dualpath.core.runtime import SystemRuntime
from dualpath.store.contract import StoredBlock
from dualpath.store.header import HEADER_BYTES, object_bytes
from dualpath.store.names import block_name, parse_key
from dualpath.store.s3.bucket import Bucket
from dualpath.store.s3.settings import S3Settings


class S3Directory:
    """One namespace's objects: a BlockStore without its I/O. Thread-safe; other processes may use the same bucket."""

    def __init__(self, settings: S3Settings, namespace_digest: bytes, geometry: KvGeometry) -> None:
        self.url = settings.url
        self.settings = settings
        self.namespace_digest = namespace_digest
        self.geometry = geometry
        self.bucket = Bucket(settings)
        self.bucket.check()

    def name_of(self, key: BlockKey, namespace_digest: bytes = b"") -> str:
        """The object's name in the bucket, in our own namespace or in another."""
        return self.bucket.below_prefix(block_name(namespace_digest or self.namespace_digest, key))

    def list_blocks(self) -> Iterator[StoredBlock]:
        for found in self.bucket.list(self.namespace_digest.hex()):
            key = parse_key(found.name.rpartition("/")[2])
            if key is not None and found.name == self.name_of(key):
                yield StoredBlock(key, found.num_bytes, found.modified_unix_s)

    def exists(self, key: BlockKey) -> bool:
        """Raises StoreError where the server does not say."""
        try:
            self.bucket.num_bytes(self.name_of(key))
        except BlockMissingError:
            return False
        return True

    def read_header(self, key: BlockKey) -> bytes:
        head = self.bucket.read(self.name_of(key), HEADER_BYTES)
        if len(head) < HEADER_BYTES:
            raise BlockCorruptError(f"block {key.hex()}: header is truncated: {len(head)} bytes")
        return head

    def delete(self, key: BlockKey) -> None:
        self.bucket.delete(self.name_of(key))

    def free_bytes(self) -> int | None:
        """A bucket does not say how much it takes."""
        return None

    def try_write(self, num_bytes: int | None = None) -> None:
        name = self.bucket.below_prefix(f"{self.namespace_digest.hex()}/try-{SystemRuntime().unique_id()}")
        self.bucket.write(name, bytes(num_bytes or object_bytes(self.geometry)))
        self.bucket.delete(name)

    def close(self) -> None:
        """Connections end with the client."""

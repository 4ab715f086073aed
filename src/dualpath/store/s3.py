"""Blocks as S3 objects: one immutable object per block, named as a file store names its files.

``<prefix>/<namespace digest>/<first 2 hex digits>/<32 hex digits>.kv``, so a directory of blocks that is copied into a
bucket is the same store. One write is one PUT, which S3 makes visible whole or not at all; two writers of a key both
succeed and the last stays. Data moves by NIXL (dualpath.store.s3_io), the directory by obstore.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dualpath.core.errors import BlockCorruptError, BlockMissingError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey
from dualpath.core.runtime import Runtime, SystemRuntime
from dualpath.store.contract import StoredBlock, StoreIo
from dualpath.store.files import SUFFIX, parse_key
from dualpath.store.header import HEADER_BYTES, object_bytes
from dualpath.store.s3_bucket import Bucket
from dualpath.store.s3_settings import S3Settings


class S3Store:
    """Directory of one namespace's objects. Thread-safe; other processes may use the same bucket."""

    def __init__(self, settings: S3Settings, namespace_digest: bytes, geometry: KvGeometry) -> None:
        self.url = settings.url
        self.settings = settings
        self.namespace_digest = namespace_digest
        self.geometry = geometry
        self.bucket = Bucket(settings)
        self.bucket.check()

    def open_io(self, agent: Any, runtime: Runtime) -> StoreIo:
        from dualpath.store.s3_io import S3Io  # the directory works without NIXL

        return S3Io(self, agent, runtime)

    def name_of(self, key: BlockKey) -> str:
        """The object's name in the bucket."""
        digits = key.hex()
        folder = f"{self.namespace_digest.hex()}/{digits[:2]}/{digits}{SUFFIX}"
        return f"{self.settings.prefix}/{folder}" if self.settings.prefix else folder

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

    def used_bytes(self) -> int:
        return sum(block.num_bytes for block in self.list_blocks())

    def free_bytes(self) -> int | None:
        """A bucket does not say how much it takes."""
        return None

    def try_write(self) -> None:
        folder = f"{self.namespace_digest.hex()}/try-{SystemRuntime().unique_id()}"
        name = f"{self.settings.prefix}/{folder}" if self.settings.prefix else folder
        self.bucket.write(name, bytes(object_bytes(self.geometry)))
        self.bucket.delete(name)

    def close(self) -> None:
        """Connections end with the client."""

"""All objects below an S3 prefix, of every namespace: ``dualpath store`` on ``s3://`` URLs."""

from __future__ import annotations

from collections.abc import Iterator

from dualpath.store.files import parse_key
from dualpath.store.folder import Entry, parse_namespace
from dualpath.store.s3_bucket import Bucket
from dualpath.store.s3_settings import S3Settings


class S3Folder:
    """A Folder over one bucket's prefix. Raises ConfigError where the bucket cannot be listed."""

    def __init__(self, settings: S3Settings) -> None:
        self._bucket = Bucket(settings)
        self._bucket.check()
        self._depth = len(settings.prefix.split("/")) if settings.prefix else 0

    def entries(self) -> Iterator[Entry]:
        for found in self._bucket.list():
            parts = found.name.split("/")[self._depth :]
            if len(parts) != 3:
                continue
            namespace_digest, key = parse_namespace(parts[0]), parse_key(parts[2])
            if namespace_digest is not None and key is not None and key.hex()[:2] == parts[1]:
                yield Entry(namespace_digest, key, found.name, found.num_bytes, found.modified_unix_s)

    def read(self, entry: Entry, num_bytes: int | None = None) -> bytes:
        return self._bucket.read(entry.name, num_bytes)

    def delete(self, entry: Entry) -> None:
        self._bucket.delete(entry.name)

    def sweep(self) -> int:
        """A PUT is whole or nothing: dead writers leave nothing."""
        return 0

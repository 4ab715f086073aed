"""All objects below an S3 prefix, of every namespace: ``dualpath store`` on ``s3://`` URLs."""

from __future__ import annotations

from collections.abc import Iterator

from dualpath.core.errors import BlockMissingError
from dualpath.store.folder import FolderEntry, parse_namespace
from dualpath.store.names import parse_key
from dualpath.store.s3.bucket import Bucket
from dualpath.store.s3.settings import S3Settings
from dualpath.store.weights_note import MAX_NOTE_BYTES, NOTE_NAME, WeightsNote, parse_note


class S3Folder:
    """A Folder over one bucket's prefix. Raises ConfigError where the bucket cannot be listed."""

    def __init__(self, settings: S3Settings) -> None:
        self._bucket = Bucket(settings)
        self._bucket.check()
        self._depth = len(settings.prefix.split("/")) if settings.prefix else 0

    def entries(self) -> Iterator[FolderEntry]:
        for found in self._bucket.list():
            parts = found.name.split("/")[self._depth :]
            if len(parts) != 3:
                continue
            namespace_digest, key = parse_namespace(parts[0]), parse_key(parts[2])
            if namespace_digest is not None and key is not None and key.hex()[:2] == parts[1]:
                yield FolderEntry(namespace_digest, key, found.name, found.num_bytes, found.modified_unix_s)

    def read(self, entry: FolderEntry, num_bytes: int | None = None) -> bytes:
        return self._bucket.read(entry.name, num_bytes)

    def delete(self, entry: FolderEntry) -> None:
        self._bucket.delete(entry.name)

    def sweep(self) -> int:
        """A PUT is whole or nothing: dead writers leave nothing."""
        return 0

    def read_note(self, namespace_digest: bytes) -> WeightsNote | None:
        try:
            return parse_note(self._bucket.read(self._note_name(namespace_digest), MAX_NOTE_BYTES))
        except BlockMissingError:
            return None

    def write_note(self, namespace_digest: bytes, note: WeightsNote) -> None:
        self._bucket.write(self._note_name(namespace_digest), note.encode())

    def delete_note(self, namespace_digest: bytes) -> None:
        self._bucket.delete(self._note_name(namespace_digest))

    def _note_name(self, namespace_digest: bytes) -> str:
        return self._bucket.below_prefix(f"{namespace_digest.hex()}/{NOTE_NAME}")

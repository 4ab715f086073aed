"""All objects at a store's URL, of every namespace and without any model: what ``dualpath store`` works on.

One class per kind of storage, one small contract. Plain reads, one object at a time, without NIXL.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from dualpath.core.errors import StoreError
from dualpath.core.ids import BlockKey
from dualpath.core.keys import KEY_BYTES
from dualpath.store.files.directory import (
    delete_file,
    scan,
    scan_files,
    store_error,
    sweep_if_abandoned,
    temporary_name,
)
from dualpath.store.names import parse_key
from dualpath.store.weights_note import MAX_NOTE_BYTES, NOTE_NAME, WeightsNote, parse_note


@dataclass(frozen=True, slots=True)
class FolderEntry:
    """What listing tells of one object; ``name`` is its path, or its name in the bucket."""

    namespace_digest: bytes
    key: BlockKey
    name: str
    num_bytes: int
    modified_unix_s: float


class Folder(Protocol):
    """Every method raises StoreError where storage refuses, and BlockMissingError where an object is gone."""

    def entries(self) -> Iterator[FolderEntry]:
        """Objects whose name is a block's name in a namespace; anything else is left alone and not shown."""
        ...

    def read(self, entry: FolderEntry, num_bytes: int | None = None) -> bytes:
        """The object, or its beginning; fewer bytes where it has no more."""
        ...

    def delete(self, entry: FolderEntry) -> None:
        """Absent is fine."""
        ...

    def sweep(self) -> int:
        """Remove what dead writers left behind. Returns how many things."""
        ...

    def read_note(self, namespace_digest: bytes) -> WeightsNote | None:
        """None: there is none that can be understood."""
        ...

    def write_note(self, namespace_digest: bytes, note: WeightsNote) -> None:
        """As a whole. A directory that is not there stays away: nobody has stored anything in it."""
        ...

    def delete_note(self, namespace_digest: bytes) -> None:
        """Absent is fine."""
        ...


def parse_namespace(name: str) -> bytes | None:
    """The digest that names a namespace's folder; None for every other name."""
    if len(name) != 2 * KEY_BYTES or not set(name) <= set("0123456789abcdef"):
        return None
    return bytes.fromhex(name)


class FileFolder:
    """A directory of namespaces."""

    def __init__(self, root: str) -> None:
        self._root = root

    def entries(self) -> Iterator[FolderEntry]:
        for directory, namespace_digest in self._namespaces():
            for found in scan_files(directory):
                key = parse_key(found.name)
                if key is None:
                    continue
                try:
                    stat = found.stat()
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise store_error(error, key) from error
                yield FolderEntry(namespace_digest, key, found.path, stat.st_size, stat.st_mtime)

    def read(self, entry: FolderEntry, num_bytes: int | None = None) -> bytes:
        try:
            with open(entry.name, "rb", buffering=0) as file:
                return file.read(-1 if num_bytes is None else num_bytes)
        except OSError as error:
            raise store_error(error, entry.key) from error

    def delete(self, entry: FolderEntry) -> None:
        delete_file(entry.name, entry.key)

    def sweep(self) -> int:
        return sum(
            sweep_if_abandoned(found)
            for directory, _ in self._namespaces()
            for found in (*scan(directory), *scan_files(directory))
        )

    def read_note(self, namespace_digest: bytes) -> WeightsNote | None:
        try:
            with open(self._note_path(namespace_digest), "rb") as file:
                return parse_note(file.read(MAX_NOTE_BYTES))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read {error.filename}: {error.strerror}") from error

    def write_note(self, namespace_digest: bytes, note: WeightsNote) -> None:
        path = self._note_path(namespace_digest)
        temporary = temporary_name(path)
        try:
            with open(temporary, "wb") as file:
                file.write(note.encode())
            os.replace(temporary, path)
        except FileNotFoundError:
            pass
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary)
            raise StoreError(f"cannot write {path}: {error.strerror}") from error

    def delete_note(self, namespace_digest: bytes) -> None:
        try:
            os.unlink(self._note_path(namespace_digest))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreError(f"cannot delete {error.filename}: {error.strerror}") from error

    def _note_path(self, namespace_digest: bytes) -> str:
        return os.path.join(self._root, namespace_digest.hex(), NOTE_NAME)

    def _namespaces(self) -> Iterator[tuple[str, bytes]]:
        for name in sorted(os.listdir(self._root)):
            path = os.path.join(self._root, name)
            namespace_digest = parse_namespace(name)
            if namespace_digest is not None and os.path.isdir(path):
                yield path, namespace_digest

"""All objects at a store's URL, of every namespace and without any model: what ``dualpath store`` works on.

One class per kind of storage, one small contract. Plain reads, one object at a time, without NIXL.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dualpath.core.errors import ConfigError
from dualpath.core.ids import BlockKey
from dualpath.core.keys import KEY_BYTES
from dualpath.store import s3_settings
from dualpath.store.files import parse_key, scan_files, store_error, sweep_if_abandoned
from dualpath.store.open import parse_url


@dataclass(frozen=True, slots=True)
class Entry:
    """What listing tells of one object; ``name`` is its path, or its name in the bucket."""

    namespace_digest: bytes
    key: BlockKey
    name: str
    num_bytes: int
    modified_unix_s: float


class Folder(Protocol):
    """Every method raises StoreError where storage refuses, and BlockMissingError where an object is gone."""

    def entries(self) -> Iterator[Entry]:
        """Objects whose name is a block's name in a namespace; anything else is left alone and not shown."""
        ...

    def read(self, entry: Entry, num_bytes: int | None = None) -> bytes:
        """The object, or its beginning; fewer bytes where it has no more."""
        ...

    def delete(self, entry: Entry) -> None:
        """Absent is fine."""
        ...

    def sweep(self) -> int:
        """Remove what dead writers left behind. Returns how many things."""
        ...


def open_folder(url: str) -> Folder:
    """Raises ConfigError for a URL without one, or where there is nothing."""
    scheme, name, options = parse_url(url)
    if scheme == "s3":
        from dualpath.store.s3_folder import S3Folder  # obstore only where it is used

        return S3Folder(s3_settings.resolve(url, name, options))
    if scheme != "file":
        raise ConfigError(f"{url}: only file and s3 stores can be inspected")
    if not Path(name).is_dir():
        raise ConfigError(f"{url}: there is no such directory")
    return FileFolder(name)


def parse_namespace(name: str) -> bytes | None:
    """The digest that names a namespace's folder; None for every other name."""
    if len(name) != 2 * KEY_BYTES or not set(name) <= set("0123456789abcdef"):
        return None
    return bytes.fromhex(name)


class FileFolder:
    """A directory of namespaces."""

    def __init__(self, root: str) -> None:
        self._root = root

    def entries(self) -> Iterator[Entry]:
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
                yield Entry(namespace_digest, key, found.path, stat.st_size, stat.st_mtime)

    def read(self, entry: Entry, num_bytes: int | None = None) -> bytes:
        try:
            with open(entry.name, "rb", buffering=0) as file:
                return file.read(-1 if num_bytes is None else num_bytes)
        except OSError as error:
            raise store_error(error, entry.key) from error

    def delete(self, entry: Entry) -> None:
        try:
            os.unlink(entry.name)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise store_error(error, entry.key) from error

    def sweep(self) -> int:
        return sum(sweep_if_abandoned(found) for directory, _ in self._namespaces() for found in scan_files(directory))

    def _namespaces(self) -> Iterator[tuple[str, bytes]]:
        for name in sorted(os.listdir(self._root)):
            path = os.path.join(self._root, name)
            namespace_digest = parse_namespace(name)
            if namespace_digest is not None and os.path.isdir(path):
                yield path, namespace_digest

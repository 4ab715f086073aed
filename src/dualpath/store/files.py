"""Blocks as files: one immutable file per block, named by its key, on any mounted file system.

``<root>/<namespace digest>/<first 2 hex digits>/<32 hex digits>.kv``. A writer fills ``<name>.tmp.<host>.<pid>.<n>``
and renames it, so a name either does not exist or holds a complete object, whoever else writes, deletes or reads it
meanwhile; two writers of one key both succeed and the last stays. ``host`` names the machine's pid space: only there
does a dead pid prove that its temporary is abandoned. Elsewhere a temporary is swept once it is an hour old.

Blocks are a cache, so nothing is fsynced by default: after a power failure a file may be short or hold zeros, and the
checksum finds it. ``durable=True`` adds fsync of file and directory before a write counts as done.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from dualpath.core.errors import BlockCorruptError, BlockMissingError, ConfigError, StoreError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey
from dualpath.core.keys import KEY_BYTES
from dualpath.store.contract import StoredBlock, StoreIo
from dualpath.store.header import HEADER_BYTES

SUFFIX = ".kv"
TEMPORARY_MARK = ".tmp."
MAX_TEMPORARY_AGE_S = 3600.0

_temporary_numbers = itertools.count()


class FileStore:
    """Directory of one namespace's files. Thread-safe, and safe against other processes on the same directory."""

    def __init__(self, root: Path, namespace_digest: bytes, geometry: KvGeometry, *, durable: bool = False) -> None:
        self.url = root.absolute().as_uri()
        self.namespace_digest = namespace_digest
        self.geometry = geometry
        self.durable = durable
        self._directory = str(root.absolute() / namespace_digest.hex())
        make_writable_directory(self._directory)

    def open_io(self, agent: Any) -> StoreIo:
        from dualpath.store.files_io import FileIo  # the directory works without NIXL

        return FileIo(self, agent)

    def path_of(self, key: BlockKey) -> str:
        name = key.hex()
        return f"{self._directory}/{name[:2]}/{name}{SUFFIX}"

    def temporary_of(self, key: BlockKey) -> str:
        """A name nobody else uses, in the directory of ``path_of``."""
        return f"{self.path_of(key)}{TEMPORARY_MARK}{pid_space()}.{os.getpid()}.{next(_temporary_numbers)}"

    def list_blocks(self) -> Iterator[StoredBlock]:
        for entry in scan_files(self._directory):
            key = parse_key(entry.name)
            if key is None:
                sweep_if_abandoned(entry)
                continue
            try:
                stat = entry.stat()
            except OSError:
                continue  # deleted since the directory was read
            yield StoredBlock(key, stat.st_size, stat.st_mtime)

    def exists(self, key: BlockKey) -> bool:
        return os.path.exists(self.path_of(key))

    def read_header(self, key: BlockKey) -> bytes:
        try:
            with open(self.path_of(key), "rb", buffering=0) as file:
                head = file.read(HEADER_BYTES)
        except OSError as error:
            raise store_error(error, key) from error
        if len(head) < HEADER_BYTES:
            raise BlockCorruptError(f"block {key.hex()}: header is truncated: {len(head)} bytes")
        return head

    def delete(self, key: BlockKey) -> None:
        try:
            os.unlink(self.path_of(key))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise store_error(error, key) from error

    def used_bytes(self) -> int:
        return sum(block.num_bytes for block in self.list_blocks())

    def close(self) -> None:
        """Nothing is held open."""


def make_writable_directory(path: str) -> None:
    """Create ``path`` where needed. Raises ConfigError, one line, where it cannot be used."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create store directory {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"store directory {path} is not writable")


def scan_files(directory: str) -> Iterator[os.DirEntry[str]]:
    """All entries of the two-digit folders. A missing folder is empty; one that cannot be read raises StoreError."""
    for folder in _scan(directory):
        if len(folder.name) == 2 and folder.is_dir():
            yield from _scan(folder.path)


def _scan(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot list {directory}: {error.strerror}") from error


def parse_key(name: str) -> BlockKey | None:
    """The key of a complete object's file name; None for every other name."""
    digits = name.removesuffix(SUFFIX)
    if digits == name or len(digits) != 2 * KEY_BYTES or not set(digits) <= set("0123456789abcdef"):
        return None
    return BlockKey(bytes.fromhex(digits))


def store_error(error: OSError, key: BlockKey) -> StoreError:
    """What the operating system said, as one of ours."""
    if isinstance(error, FileNotFoundError):
        return BlockMissingError(f"block {key.hex()} is not stored")
    return StoreError(f"block {key.hex()}: {error.strerror or error}")


@cache
def pid_space() -> str:
    """Eight digits that are equal exactly where a pid means the same process: machine, boot and pid namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=4).hexdigest()


def sweep_if_abandoned(entry: os.DirEntry[str]) -> bool:
    """Remove ``entry`` if it is a temporary whose writer is dead or which is too old. Foreign files are left alone."""
    name, mark, writer = entry.name.rpartition(TEMPORARY_MARK)
    if not mark or parse_key(name) is None:
        return False
    with suppress(OSError):
        is_old = time.time() - entry.stat().st_mtime > MAX_TEMPORARY_AGE_S
        if is_old or _writer_is_dead(writer):
            os.unlink(entry.path)
            return True
    return False


def _writer_is_dead(writer: str) -> bool:
    host, _, rest = writer.partition(".")
    pid = rest.partition(".")[0]
    if host != pid_space() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # alive, and somebody else's
    return False

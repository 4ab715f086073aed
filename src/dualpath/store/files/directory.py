"""Blocks as files: one immutable file per block, named by its key, on any mounted file system.

``<root>/<namespace digest>/<first 2 hex digits>/<32 hex digits>.kv``. A writer fills ``<name>.tmp.<host>.<pid>.<n>``
and renames it, so a name either does not exist or holds a complete object, whoever else writes, deletes or reads it
meanwhile; two writers of one key both succeed and the last stays. ``host`` names the machine's pid space: only there
does a dead pid prove that its temporary is abandoned. Elsewhere a temporary is swept once it is an hour old.

Blocks are a cache, so nothing is fsynced by default: after a power failure a file may be short or hold zeros, and the
checksum finds it. ``durable=True`` adds fsync of the file, and of every directory on its way that got a new entry,
before a write counts as done.

A directory that was deleted under a running server is made again; a mount that vanished is not filled: what is there in
its place is on another file system.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from dualpath.core.errors import BlockCorruptError, BlockMissingError, ConfigError, StoreError, StoreFullError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey
from dualpath.core.keys import KEY_BYTES
from dualpath.core.runtime import SystemRuntime
from dualpath.store.contract import StoredBlock
from dualpath.store.header import HEADER_BYTES, object_bytes
from dualpath.store.names import block_name, parse_key
from dualpath.store.weights_note import NOTE_NAME

TEMPORARY_MARK = ".tmp."
MAX_TEMPORARY_AGE_S = 3600.0

_temporary_numbers = itertools.count()


class FileDirectory:
    """One namespace's files: a BlockStore without its I/O. Thread-safe, and safe against other processes on the same
    directory.
    """

    def __init__(self, root: Path, namespace_digest: bytes, geometry: KvGeometry, *, durable: bool = False) -> None:
        self.url = root.absolute().as_uri()
        self.namespace_digest = namespace_digest
        self.geometry = geometry
        self.durable = durable
        self._root = str(root.absolute())
        self._directory = os.path.join(self._root, namespace_digest.hex())
        self._synced_folders: dict[str, None] = {}  # whose own entry in the directory is durable
        try:
            self._make_directory()
        except OSError as error:
            raise ConfigError(f"cannot create store directory {self._directory}: {error.strerror}") from error
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise ConfigError(f"store directory {self._directory} is not writable")
        self._device = os.stat(self._directory).st_dev

    def path_of(self, key: BlockKey, namespace_digest: bytes = b"") -> str:
        """``namespace_digest``: none for our own, here and everywhere."""
        return os.path.join(self._root, block_name(namespace_digest or self.namespace_digest, key))

    def temporary_of(self, key: BlockKey, namespace_digest: bytes = b"") -> str:
        """A name nobody else uses, in the directory of ``path_of``."""
        return temporary_name(self.path_of(key, namespace_digest))

    def make_folder(self, key: BlockKey, namespace_digest: bytes = b"") -> None:
        """The two-digit folder of ``path_of``. Raises OSError, or StoreError where the file system is gone."""
        folder = os.path.dirname(self.path_of(key, namespace_digest))
        with suppress(FileExistsError):
            try:
                os.mkdir(folder)
            except FileNotFoundError:
                self._restore_directory()
                os.makedirs(os.path.dirname(folder), exist_ok=True)
                os.mkdir(folder)

    def sync_folder(self, key: BlockKey, namespace_digest: bytes = b"") -> None:
        """Make a new name durable, and the folder's own if this is the first one here."""
        folder = os.path.dirname(self.path_of(key, namespace_digest))
        _sync(folder)
        if folder not in self._synced_folders:
            _sync(os.path.dirname(folder))
            if namespace_digest:
                _sync(self._root)
            self._synced_folders[folder] = None

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
        delete_file(self.path_of(key), key)

    def free_bytes(self) -> int | None:
        """What the file system has for users without privileges, whatever their quota."""
        try:
            found = os.statvfs(self._directory)
        except OSError as error:
            raise StoreError(f"{self.url}: {error.strerror or error}") from error
        return found.f_bavail * found.f_frsize

    def try_write(self, num_bytes: int | None = None) -> None:
        """As a temporary: should we die here, whoever lists the store next removes it."""
        key = BlockKey(bytes(KEY_BYTES))
        path = self.temporary_of(key)
        try:
            self.make_folder(key)
            with open(path, "xb", buffering=0) as file:
                left = memoryview(bytes(num_bytes or object_bytes(self.geometry)))
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
        except OSError as error:
            raise store_error(error, key) from error
        finally:
            with suppress(OSError):
                os.unlink(path)

    def close(self) -> None:
        """Nothing is held open."""

    def _restore_directory(self) -> None:
        path = Path(self._directory)
        while not path.exists():
            path = path.parent
        if os.stat(path).st_dev != self._device:
            raise StoreError(f"{self.url}: the file system is gone")
        self._make_directory()

    def _make_directory(self) -> None:
        path = Path(self._directory)
        changed = [path.parent]  # always: another process may have made ours, and died before it was durable
        while not changed[-1].exists():
            changed.append(changed[-1].parent)
        path.mkdir(parents=True, exist_ok=True)
        self._synced_folders.clear()
        if self.durable:
            for parent in reversed(changed):
                _sync(str(parent))


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def scan_files(directory: str) -> Iterator[os.DirEntry[str]]:
    """All entries of the two-digit folders. A missing folder is empty; one that cannot be read raises StoreError."""
    for folder in scan(directory):
        if len(folder.name) == 2 and folder.is_dir():
            yield from scan(folder.path)


def scan(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot list {directory}: {error.strerror}") from error


def store_error(error: OSError, key: BlockKey) -> StoreError:
    """What the operating system said, as one of ours."""
    if isinstance(error, FileNotFoundError):
        return BlockMissingError(f"block {key.hex()} is not stored")
    kind = StoreFullError if is_full(error) else StoreError
    return kind(f"block {key.hex()}: {error.strerror or error}")


def delete_file(path: str, key: BlockKey) -> None:
    """Absent is fine. Raises StoreError."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise store_error(error, key) from error


def is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@cache
def pid_space() -> str:
    """Eight digits that are equal exactly where a pid means the same process: machine, boot and pid namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=4).hexdigest()


def temporary_name(path: str) -> str:
    """A name beside ``path`` that nobody else uses."""
    return f"{path}{TEMPORARY_MARK}{pid_space()}.{os.getpid()}.{next(_temporary_numbers)}"


def sweep_if_abandoned(entry: os.DirEntry[str]) -> bool:
    """Remove ``entry`` if it is a temporary whose writer is dead or which is too old. Foreign files are left alone."""
    name, mark, writer = entry.name.rpartition(TEMPORARY_MARK)
    if not mark or (parse_key(name) is None and name != NOTE_NAME):
        return False
    with suppress(OSError):
        is_old = SystemRuntime().unix_s() - entry.stat().st_mtime > MAX_TEMPORARY_AGE_S  # a file's age is real
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

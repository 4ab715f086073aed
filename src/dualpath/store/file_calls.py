"""What is asked of the file system beside the bytes: open, measure, name, close. Any of it may block, or fail.

A descriptor is closed once: where close(2) fails it is closed all the same, and what was written may be lost (NFS says
so there). So a file gets its name after it was closed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress

from dualpath.core.errors import BlockCorruptError, StoreError
from dualpath.core.ids import BlockKey
from dualpath.store.files import FileStore, is_full, store_error

logger = logging.getLogger(__name__)


class FileCalls:
    """For any thread. Methods raise OSError or StoreError, and hold no descriptor then."""

    def __init__(self, store: FileStore) -> None:
        self._store = store

    def open_block(self, key: BlockKey, num_bytes: int) -> int:
        fd = os.open(self._store.path_of(key), os.O_RDONLY)
        try:
            found_bytes = os.fstat(fd).st_size
            if found_bytes != num_bytes:
                raise BlockCorruptError(f"block {key.hex()}: file of {found_bytes} bytes instead of {num_bytes}")
        except BaseException:
            self.close([fd])
            raise
        return fd

    def open_temporary(self, key: BlockKey) -> tuple[int, str]:
        path = self._store.temporary_of(key)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            return os.open(path, flags, 0o644), path
        except FileNotFoundError:
            self._store.make_folder(key)
            return os.open(path, flags, 0o644), path

    def publish(self, key: BlockKey, fd: int, temporary: str, num_bytes: int, is_given_up: Callable[[], bool]) -> None:
        """Close a written file and give it its name, or remove it."""
        try:
            try:
                self._check_size(key, fd, num_bytes)
                if self._store.durable:
                    os.fsync(fd)
            finally:
                os.close(fd)
            if is_given_up():
                raise StoreError("given up")
            os.rename(temporary, self._store.path_of(key))
            if self._store.durable:
                self._store.sync_folder(key)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def discard(self, key: BlockKey, fd: int, temporary: str, num_bytes: int) -> None:
        """Remove a file that could not be written. Raises StoreFullError where there is no room for it."""
        try:
            self._check_room(key, fd, num_bytes)
        finally:
            self.remove(fd, temporary)

    def remove(self, fd: int, temporary: str) -> None:
        """Close a file that is of no use any more. It has no name where it was only read."""
        self.close([fd])
        if temporary:
            with suppress(OSError):
                os.unlink(temporary)

    def close(self, fds: Iterable[int]) -> None:
        for fd in fds:
            try:
                os.close(fd)
            except OSError as error:
                logger.warning("closing a file of %s: %s", self._store.url, error)

    def _check_size(self, key: BlockKey, fd: int, num_bytes: int) -> None:
        written_bytes = os.fstat(fd).st_size
        if written_bytes != num_bytes:
            self._check_room(key, fd, num_bytes)
            raise StoreError(f"block {key.hex()}: only {written_bytes} of {num_bytes} bytes were written")

    def _check_room(self, key: BlockKey, fd: int, num_bytes: int) -> None:
        """NIXL does not say why a write failed. Raises StoreFullError where the file cannot have its size."""
        try:
            os.posix_fallocate(fd, 0, num_bytes)
        except OSError as error:
            if is_full(error):
                raise store_error(error, key) from error

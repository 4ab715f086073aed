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
from dualpath.store.contract import IoRequest
from dualpath.store.files.directory import FileDirectory, is_full, store_error
from dualpath.store.ticket import Ticket

logger = logging.getLogger(__name__)


def explain(ticket: Ticket, error: Exception) -> StoreError:
    """What such a call met, as one of our errors."""
    if isinstance(error, StoreError):
        return error
    if ticket.is_write and isinstance(error, FileNotFoundError):
        return StoreError(f"block {ticket.key.hex()}: its folder was deleted meanwhile")
    if isinstance(error, OSError):
        return store_error(error, ticket.key)
    return StoreError(f"block {ticket.key.hex()}: {error!r}")


class FileCalls:
    """For any thread. Methods raise OSError or StoreError, and hold no descriptor then."""

    def __init__(self, directory: FileDirectory) -> None:
        self._directory = directory

    def open_block(self, request: IoRequest) -> int:
        key, num_bytes = request.key, request.num_bytes
        fd = os.open(self._directory.path_of(key, request.namespace_digest), os.O_RDONLY)
        try:
            found_bytes = os.fstat(fd).st_size
            if found_bytes != num_bytes:
                raise BlockCorruptError(f"block {key.hex()}: file of {found_bytes} bytes instead of {num_bytes}")
        except BaseException:
            self.close([fd])
            raise
        return fd

    def open_temporary(self, request: IoRequest) -> tuple[int, str]:
        path = self._directory.temporary_of(request.key, request.namespace_digest)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            return os.open(path, flags, 0o644), path
        except FileNotFoundError:
            self._directory.make_folder(request.key, request.namespace_digest)
            return os.open(path, flags, 0o644), path

    def publish(self, request: IoRequest, fd: int, temporary: str, is_given_up: Callable[[], bool]) -> None:
        """Close a written file and give it its name, or remove it."""
        key, num_bytes, namespace_digest = request.key, request.num_bytes, request.namespace_digest
        try:
            try:
                self._check_size(key, fd, num_bytes)
                if self._directory.durable:
                    os.fsync(fd)
            finally:
                os.close(fd)
            if is_given_up():
                raise StoreError("given up")
            os.rename(temporary, self._directory.path_of(key, namespace_digest))
            if self._directory.durable:
                self._directory.sync_folder(key, namespace_digest)
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
                logger.warning("closing a file of %s: %s", self._directory.url, error)

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

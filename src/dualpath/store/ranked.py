"""Blocks that the ranks of tensor-parallel engines store in parts: each its own object under one key, seen as one.

A block is there when all its parts are. Its writer tells of it when all have become durable; a part that is alone is
what a crash between two of them has left.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from dualpath.core.errors import ConfigError, StoreError
from dualpath.core.ids import BlockKey
from dualpath.core.keys import Namespace
from dualpath.core.runtime import Clock, Runtime, SystemRuntime
from dualpath.store.contract import BlockStore, StoredBlock, StoreIo
from dualpath.store.header import object_bytes

log = logging.getLogger(__name__)

_ALONE_S = 3600.0  # a part without the others: for so long its writer may be about to add them


class RankedStore:
    """A BlockStore over those of the ranks; their namespaces are ``namespace``'s parts. Thread-safe, as they are.

    A block's size is that of all parts' KV and one header.
    """

    def __init__(self, namespace: Namespace, parts: Sequence[BlockStore], clock: Clock | None = None) -> None:
        self.namespace_digest, self.geometry = namespace.digest, namespace.geometry
        self._parts, self._clock = tuple(parts), clock or SystemRuntime()
        self.url = self._parts[0].url
        self.num_listed = 0  # parts, so far

    def open_io(self, agent: Any, runtime: Runtime) -> StoreIo:
        """Raises ConfigError: each rank opens its own part's."""
        raise ConfigError("blocks that ranks store in parts are moved by their ranks")

    def list_blocks(self) -> Iterator[StoredBlock]:
        """Whole blocks; one with a part of a wrong size has a wrong size. Old parts that are alone are deleted."""
        expected_bytes, now_unix_s = object_bytes(self._parts[0].geometry), self._clock.unix_s()
        found: dict[BlockKey, tuple[int, bool, float]] = {}  # how many parts, whether all are sound, the latest's time
        for part in self._parts:
            for block in part.list_blocks():
                self.num_listed += 1
                count, is_sound, latest = found.get(block.key, (0, True, 0.0))
                is_sound = is_sound and block.num_bytes == expected_bytes
                found[block.key] = count + 1, is_sound, max(latest, block.modified_unix_s)
        for key, (count, is_sound, modified_unix_s) in found.items():
            if count == len(self._parts):
                yield StoredBlock(key, object_bytes(self.geometry) if is_sound else 0, modified_unix_s)
            elif now_unix_s - modified_unix_s > _ALONE_S:
                self._delete_alone(key, count)

    def _delete_alone(self, key: BlockKey, count: int) -> None:
        log.warning("%s: block %s has %d of %d parts: deleted", self.url, key.hex(), count, len(self._parts))
        try:
            self.delete(key)
        except StoreError as error:
            log.warning("%s", error)

    def exists(self, key: BlockKey) -> bool:
        return all(part.exists(key) for part in self._parts)

    def read_header(self, key: BlockKey) -> bytes:
        """The first part's: all say the same of the block's place among others."""
        return self._parts[0].read_header(key)

    def delete(self, key: BlockKey) -> None:
        """All parts are tried. Raises the first StoreError."""
        errors = []
        for part in self._parts:
            try:
                part.delete(key)
            except StoreError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def free_bytes(self) -> int | None:
        return self._parts[0].free_bytes()

    def try_write(self, num_bytes: int | None = None) -> None:
        self._parts[0].try_write(num_bytes)

    def close(self) -> None:
        for part in self._parts:
            part.close()


def parts_listed(store: BlockStore) -> int:
    """So far, of a store in parts: its listing yields nothing before the last part's."""
    return store.num_listed if isinstance(store, RankedStore) else 0

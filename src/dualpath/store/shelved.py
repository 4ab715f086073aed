"""One store's blocks of several namespaces, as whoever deletes blocks sees them: the index knows which is whose."""

from __future__ import annotations

from dualpath.core.ids import BlockKey
from dualpath.store.contract import BlockStore
from dualpath.store.index import BlockIndex


class ShelvedStore:
    """A BlockDirectory over stores that were added; of the first it has the place. Thread-safe, as they are."""

    def __init__(self, first: BlockStore, index: BlockIndex) -> None:
        self._first, self._index = first, index
        self._stores = {first.namespace_digest: first}
        self.url = first.url

    def add(self, store: BlockStore) -> None:
        self._stores[store.namespace_digest] = store

    def _of(self, key: BlockKey) -> BlockStore:
        return self._stores.get(self._index.namespace_of(key), self._first)

    def exists(self, key: BlockKey) -> bool:
        return self._of(key).exists(key)

    def read_header(self, key: BlockKey) -> bytes:
        return self._of(key).read_header(key)

    def delete(self, key: BlockKey) -> None:
        self._of(key).delete(key)

    def free_bytes(self) -> int | None:
        return self._first.free_bytes()

    def try_write(self, num_bytes: int | None = None) -> None:
        self._first.try_write(num_bytes)

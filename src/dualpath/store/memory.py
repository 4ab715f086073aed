"""Blocks in this process's memory: the store of tests and demonstrations, with the full contract.

Stores of one URL and namespace share their blocks within the process. A transfer's bytes move in ``poll``, not in
``submit``, so that a caller which looks at its buffer too early is found out.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dualpath.core.errors import BlockCorruptError, BlockMissingError, StoreError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey
from dualpath.core.runtime import Clock, SystemRuntime
from dualpath.store.contract import IoRequest, IoState, IoTicket, StoredBlock, StoreIo
from dualpath.store.header import HEADER_BYTES, verify
from dualpath.store.ticket import Ticket


@dataclass(slots=True)
class _Shelf:
    """The blocks of one URL and namespace: complete, immutable objects and when they came."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    objects: dict[BlockKey, tuple[bytes, float]] = field(default_factory=dict)

    def get(self, key: BlockKey) -> bytes:
        with self.lock:
            if key not in self.objects:
                raise BlockMissingError(f"block {key.hex()} is not stored")
            return self.objects[key][0]

    def put(self, key: BlockKey, data: bytes, modified_unix_s: float) -> None:
        with self.lock:
            self.objects[key] = (data, modified_unix_s)


_shelves: dict[tuple[str, bytes], _Shelf] = {}
_shelves_lock = threading.Lock()


def _shelf(url: str, namespace_digest: bytes) -> _Shelf:
    with _shelves_lock:
        return _shelves.setdefault((url, namespace_digest), _Shelf())


def forget(url: str) -> None:
    """Free what is stored at ``url``, in all namespaces. Nobody may use it any more."""
    with _shelves_lock:
        for place in [place for place in _shelves if place[0] == url]:
            del _shelves[place]


class MemoryStore:
    """Directory of one namespace's blocks in memory. Thread-safe; never blocks for long."""

    def __init__(self, url: str, namespace_digest: bytes, geometry: KvGeometry) -> None:
        self.url = url
        self.namespace_digest = namespace_digest
        self.geometry = geometry
        self._shelf = _shelf(url, namespace_digest)

    def open_io(self, agent: Any = None, runtime: Clock | None = None) -> StoreIo:
        return MemoryIo(self.url, self._shelf, runtime or SystemRuntime())

    def list_blocks(self) -> Iterator[StoredBlock]:
        with self._shelf.lock:
            items = list(self._shelf.objects.items())
        for key, (data, modified_unix_s) in items:
            yield StoredBlock(key, len(data), modified_unix_s)

    def exists(self, key: BlockKey) -> bool:
        return key in self._shelf.objects

    def read_header(self, key: BlockKey) -> bytes:
        head = self._shelf.get(key)[:HEADER_BYTES]
        if len(head) < HEADER_BYTES:
            raise BlockCorruptError(f"block {key.hex()}: header is truncated")
        return head

    def delete(self, key: BlockKey) -> None:
        with self._shelf.lock:
            self._shelf.objects.pop(key, None)

    def free_bytes(self) -> int | None:
        return None

    def try_write(self, num_bytes: int | None = None) -> None:
        """There is always room."""

    def close(self) -> None:
        """The blocks stay for the next store of this URL."""

    def raw(self, key: BlockKey) -> bytes:
        """The whole object. Raises BlockMissingError."""
        return self._shelf.get(key)

    def is_sound(self, key: BlockKey) -> bool:
        """Does the object's checksum hold?"""
        try:
            verify(memoryview(bytearray(self.raw(key))), self.namespace_digest, key, self.geometry)
        except BlockCorruptError:
            return False
        return True

    def put_raw(self, key: BlockKey, data: bytes) -> None:
        """Place any bytes under ``key``: how tests make truncated and damaged objects."""
        self._shelf.put(key, data, 0.0)


class MemoryIo:
    """Moves objects by memory copy: each at its first poll."""

    def __init__(self, url: str, shelf: _Shelf, clock: Clock) -> None:
        self._url, self._shelf = url, shelf
        self._clock = clock

    def submit_reads(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        return [Ticket(request.key, request, is_write=False) for request in requests]

    def submit_writes(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        return [Ticket(request.key, request, is_write=True) for request in requests]

    def poll(self, ticket: IoTicket) -> IoState:
        assert isinstance(ticket, Ticket)
        if ticket.state is IoState.IN_PROGRESS:
            try:
                self._move(ticket)
                ticket.settle(None)
            except StoreError as error:
                ticket.settle(error)
        return ticket.state

    def _move(self, ticket: Ticket) -> None:
        request = ticket.request
        shelf = _shelf(self._url, request.namespace_digest) if request.namespace_digest else self._shelf
        if ticket.is_write:
            data = ctypes.string_at(request.address, request.num_bytes)
            shelf.put(request.key, data, self._clock.unix_s())
            return
        data = shelf.get(request.key)
        if len(data) != request.num_bytes:
            raise BlockCorruptError(f"block {request.key.hex()}: {len(data)} bytes instead of {request.num_bytes}")
        ctypes.memmove(request.address, data, request.num_bytes)

    def release(self, ticket: IoTicket) -> bool:
        """Always quiescent: bytes move only inside ``poll``."""
        assert isinstance(ticket, Ticket)
        ticket.settle(StoreError("given up"))
        return True

    def stalled_s(self) -> float:
        return 0.0

    def close(self) -> None: ...

"""Makes blocks for the store tests: a small geometry, keys from numbers, and staging memory with I/O over it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey
from dualpath.store.contract import BlockStore, IoRequest, IoState, IoTicket, StoreIo
from dualpath.store.header import object_bytes, write_header

GEOMETRY = KvGeometry(num_layers=4, block_tokens=16, bytes_per_token_layer=64)
OBJECT_BYTES = object_bytes(GEOMETRY)
NAMESPACE = b"namespace-digest"


def key_of(number: int) -> BlockKey:
    return BlockKey(hashlib.blake2b(str(number).encode(), digest_size=16).digest())


def fill_block(view: memoryview, number: int, namespace: bytes = NAMESPACE) -> None:
    """Block ``number``, behind block ``number - 1``: its payload is its own and the same every time."""
    payload = hashlib.shake_128(str(number).encode()).digest(GEOMETRY.full_block_bytes)
    view[OBJECT_BYTES - len(payload) :] = payload
    write_header(view, namespace, key_of(number), key_of(number - 1), GEOMETRY)


def block_bytes(number: int, namespace: bytes = NAMESPACE) -> bytes:
    data = bytearray(OBJECT_BYTES)
    fill_block(memoryview(data), number, namespace)
    return bytes(data)


@dataclass
class Bench:
    """A store, its I/O, and registered staging slots."""

    store: BlockStore
    io: StoreIo
    staging: torch.Tensor  # [slots, OBJECT_BYTES] uint8
    agent: Any = None
    views: list[memoryview] = field(init=False)

    def __post_init__(self) -> None:
        self.views = [memoryview(slot.numpy()) for slot in self.staging]

    def request(self, slot: int, number: int) -> IoRequest:
        return IoRequest(key_of(number), self.staging[slot].data_ptr(), OBJECT_BYTES)

    def requests(self, numbers: Sequence[int]) -> list[IoRequest]:
        return [self.request(slot, number) for slot, number in enumerate(numbers)]

    def write(self, *numbers: int) -> list[IoState]:
        for slot, number in enumerate(numbers):
            fill_block(self.views[slot], number)
        return self.finish(self.io.submit_writes(self.requests(numbers)))

    def read(self, *numbers: int) -> list[IoTicket]:
        self.staging.zero_()
        tickets = self.io.submit_reads(self.requests(numbers))
        self.finish(tickets)
        return list(tickets)

    def finish(self, tickets: Sequence[IoTicket], timeout_s: float = 20.0) -> list[IoState]:
        """Poll until every ticket has ended, and release them."""
        deadline_s = time.monotonic() + timeout_s
        while IoState.IN_PROGRESS in (states := [self.io.poll(ticket) for ticket in tickets]):
            assert time.monotonic() < deadline_s, "tickets never end"
        assert all(self.io.release(ticket) for ticket in tickets)
        return states

"""One S3 object on its way, and the mark by which a read tells that all of it has arrived."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from dualpath.core.ids import BlockKey
from dualpath.core.runtime import Runtime
from dualpath.store.contract import IoRequest, IoState


@dataclass(slots=True, eq=False)
class S3Ticket:
    """One object on its way. ``handle`` is set while its transfer is posted and not over."""

    key: BlockKey
    request: IoRequest
    is_write: bool
    state: IoState = IoState.IN_PROGRESS
    error: Exception | None = None
    handle: Any = None
    device_id: int = 0  # how NIXL knows the object; 0: not registered
    mark: int = 0  # what a read's last byte was before
    num_attempts: int = 0
    has_arrived: bool = False  # a read's transfer ended well; its size is in doubt
    is_asked: bool = False  # somebody asks the bucket for the object's size
    is_abandoned: bool = False


def last_byte(request: IoRequest) -> ctypes.c_uint8:
    return ctypes.c_uint8.from_address(request.address + request.num_bytes - 1)


def set_mark(request: IoRequest, runtime: Runtime) -> int:
    """Put a random byte where the object's last one is to come. S3 delivers in order: once it has changed, all is here.

    A short object makes a good answer to a ranged GET, so nothing else would tell. One read in 256 keeps the mark by
    chance and asks the bucket in vain.
    """
    last = last_byte(request)
    last.value = runtime.random_bits(8)
    return last.value

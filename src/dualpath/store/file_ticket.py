"""One file on its way: what its transfer holds, and how its failures read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dualpath.core.errors import StoreError
from dualpath.core.ids import BlockKey
from dualpath.store.contract import IoRequest, IoState
from dualpath.store.files import store_error


@dataclass(slots=True, eq=False)
class FileTicket:
    """One object on its way. ``handle`` is set while its transfer is posted and not over."""

    key: BlockKey
    request: IoRequest
    is_write: bool
    temporary: str = ""
    state: IoState = IoState.IN_PROGRESS
    error: Exception | None = None
    fd: int = -1
    is_registered: bool = False
    handle: Any = None
    is_abandoned: bool = False
    doubt_ends_s: float = 0.0  # monotonic; 0: no doubt


def region(ticket: FileTicket) -> tuple[int, int, int, str]:
    """The open file as NIXL registers it."""
    return (0, ticket.request.num_bytes, ticket.fd, "")


def explain(ticket: FileTicket, error: Exception) -> StoreError:
    """What went wrong, as one of our errors."""
    if not isinstance(error, OSError):
        return StoreError(f"block {ticket.key.hex()}: NIXL says {error!r}")
    if ticket.is_write and isinstance(error, FileNotFoundError):
        return StoreError(f"block {ticket.key.hex()}: the store's directory is gone")
    return store_error(error, ticket.key)

"""One file on its way: what its transfer holds, how far it has come, and how its failures read."""

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
    state: IoState = IoState.IN_PROGRESS
    error: Exception | None = None
    fd: int = -1
    temporary: str = ""
    handle: Any = None
    has_moved: bool = False  # a write whose bytes are in the file, which waits for its name
    is_abandoned: bool = False
    is_moving: bool = False  # without NIXL: another thread may touch the memory
    doubt_ends_s: float = 0.0  # 0: no doubt

    def is_given_up(self) -> bool:
        """Asked by other threads, too: what was given up is not published."""
        return self.is_abandoned

    def settle(self, error: Exception | None) -> None:
        """Its end, unless it was given up before."""
        if self.state is IoState.IN_PROGRESS:
            self.error = error
            self.state = IoState.DONE if error is None else IoState.FAILED


def region(ticket: FileTicket) -> tuple[int, int, int, str]:
    """The open file as NIXL registers it."""
    return (0, ticket.request.num_bytes, ticket.fd, "")


def explain(ticket: FileTicket, error: Exception) -> StoreError:
    """What went wrong, as one of our errors."""
    if isinstance(error, StoreError):
        return error
    if ticket.is_write and isinstance(error, FileNotFoundError):
        return StoreError(f"block {ticket.key.hex()}: its folder was deleted meanwhile")
    if isinstance(error, OSError):
        return store_error(error, ticket.key)
    return StoreError(f"block {ticket.key.hex()}: NIXL says {error!r}")

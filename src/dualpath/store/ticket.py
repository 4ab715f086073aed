"""One block on its way: what every store's I/O hands out."""

from __future__ import annotations

from dataclasses import dataclass

from dualpath.core.ids import BlockKey
from dualpath.store.contract import IoRequest, IoState


@dataclass(slots=True, eq=False)
class Ticket:
    """An IoTicket."""

    key: BlockKey
    request: IoRequest
    is_write: bool
    state: IoState = IoState.IN_PROGRESS
    error: Exception | None = None
    is_abandoned: bool = False

    def is_given_up(self) -> bool:
        """Asked by other threads, too: what was given up is not published."""
        return self.is_abandoned

    def settle(self, error: Exception | None) -> None:
        """Its end, unless it was given up before."""
        if self.state is IoState.IN_PROGRESS:
            self.error = error
            self.state = IoState.DONE if error is None else IoState.FAILED

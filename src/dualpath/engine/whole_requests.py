"""Device memory of a prefill engine that does not stream layers: whole requests, from their read to their last forward.

This is what the paper's Basic pays (section 4): a request that waits for its KV already occupies room for all layers of
all its tokens, so fewer requests fit into a batch. Only the amount is reserved; where a request's rows lie is decided
forward by forward.
"""

from __future__ import annotations

from dualpath.core.ids import RequestId
from dualpath.core.runtime import Clock
from dualpath.traffic.slots import SlotPool


class WholeRequests:
    """Blocks of device memory, all layers of each, by request; first come, first served. Event loop only."""

    def __init__(self, num_blocks: int, clock: Clock, deadline_s: float) -> None:
        self._pool = SlotPool(num_blocks, clock)
        self._deadline_s = deadline_s
        self._held: dict[RequestId, list[int]] = {}
        self.peak_blocks = 0

    @property
    def used_blocks(self) -> int:
        return self._pool.num_used

    async def reserve(self, request_id: RequestId, num_blocks: int) -> None:
        """Wait for room, unless the request has it already. Raises DeadlineExceededError, and then nothing is held."""
        if request_id not in self._held:
            self._held[request_id] = await self._pool.acquire(num_blocks, self._deadline_s)
            self.peak_blocks = max(self.peak_blocks, self.used_blocks)

    def release(self, request_id: RequestId) -> None:
        """Idempotent."""
        self._pool.release(self._held.pop(request_id, []))

    def close(self) -> None:
        self._pool.close()

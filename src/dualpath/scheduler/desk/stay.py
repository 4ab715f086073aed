"""What the desk keeps of one attempt, from its placement until both of its engines have let go of it."""

from __future__ import annotations

from dualpath.core.ids import BlockKey, EngineId, NodeId, RequestId
from dualpath.core.plan import Role
from dualpath.scheduler.blocks import IndexView, WriteLedger
from dualpath.scheduler.demand import Placement
from dualpath.scheduler.engine_loads import EngineLoads, ReadId


class Stay:
    """Its place on two engines, its reads in their nodes' queues, the chain that is kept for it, its writes."""

    def __init__(
        self,
        request_id: RequestId,
        placement: Placement,
        nodes: dict[Role, NodeId],
        connection: int,
        engine_loads: EngineLoads,
        index: IndexView,
    ) -> None:
        self.request_id, self.placement = request_id, placement
        self.nodes = nodes
        self.connection = connection  # of the two engines, as it was placed: dualpath.scheduler.peering
        self._engine_loads, self._index = engine_loads, index
        self._reads: dict[int, ReadId] = {}
        self._pinned: BlockKey | None = None
        self.ledger = WriteLedger(index, index.shelf)
        self.is_mute = False  # of its writes nothing is taken down
        self.left = {placement.prefill: None, placement.decode: None}  # engines that have not released it

    def begin_read(self, number: int, role: Role, num_tokens: int) -> None:
        if number not in self._reads:
            self._reads[number] = self._engine_loads.start_read(self.nodes[role], num_tokens)

    def end_read(self, number: int) -> None:
        if number in self._reads:
            self._engine_loads.end_read(self._reads[number])

    def pin(self, key: BlockKey) -> None:
        """Keep the chain that ends with this block."""
        self._index.pin(key)
        self._unpin()
        self._pinned = key

    def end_reading(self) -> None:
        for read_id in self._reads.values():
            self._engine_loads.end_read(read_id)
        self._unpin()

    def _unpin(self) -> None:
        if self._pinned is not None:
            self._index.unpin(self._pinned)
            self._pinned = None

    def grow(self, num_tokens: int) -> None:
        self._engine_loads.grow(self.request_id, self.placement.decode, num_tokens)

    def release(self, engine_id: EngineId) -> bool:
        """True: that was the last, and nothing is kept any more."""
        self._engine_loads.release(self.request_id, engine_id)
        self.left.pop(engine_id, None)
        if self.left:
            return False
        self.end_sharing()
        return True

    def end_sharing(self) -> None:
        """It reads and writes no more."""
        self.end_reading()
        self.ledger.close()

"""The prefill engine inside a vLLM worker: reads its share of the hits, and says when a prompt has been handed over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np

from dualpath.core.ids import PeerId, RequestId
from dualpath.core.plan import Role
from dualpath.protocol.api import PrefillOrder
from dualpath.vllm.worker.staged import StagedNode
from dualpath.vllm.worker.tasks import PrefillTask


class StagedPrefill(StagedNode[PrefillTask]):
    """``line.PrefillNodeLine``."""

    role = Role.PREFILL

    async def peer_at_rest(self, peer: PeerId) -> None:
        await self.parts.runtime.to_thread(self.parts.traffic.peer_at_rest, peer)

    async def reserve(self, request_id: RequestId, num_slots: int, num_prompt_blocks: int) -> None:
        """vLLM itself sees to device memory."""
        await self._staged.reserve(request_id, num_slots)

    async def hand_over(self, order: PrefillOrder) -> AsyncIterator[bool]:
        order = self.parts.own(order)
        task = self._accept(order)
        self.tasks.add(task, order.namespace_digest)
        with self.parts.traffic.expecting_peers():  # that push and pull: compute waits for every layer
            yield True
            done = asyncio.wrap_future(task.done)
            done.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody may wait any more
            await asyncio.shield(done)

    def _accept(self, order: PrefillOrder) -> PrefillTask:
        """Raises LookupError where a block of the order has no slot here."""
        request, geometry = order.request, self.parts.kv.geometry
        slots = self._staged.slots(request.request_id)
        integrity = self.parts.integrity
        return PrefillTask(
            request_id=request.request_id,
            order=order,
            slots={block: slots[block] for block in order.prefill_blocks},
            names=[] if integrity is None else integrity.names(request, order.keys, order.root, order.namespace_digest),
            digests=np.zeros((geometry.num_layers, len(order.decode_slots)), dtype=np.uint64),
        )

    async def release(self, request_id: RequestId) -> bool:
        task = self.tasks.close(request_id)
        if task is not None:
            if not task.is_at_rest:
                return False
            self.tasks.forget(request_id)
        self._staged.release(request_id)
        return True

"""The decode engine inside a vLLM worker: reads its share, takes in what is pushed, stores every Full Block."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import ExitStack
from typing import Any

from dualpath.core.errors import OtherWeightsError
from dualpath.core.ids import BlockKey, RequestId
from dualpath.core.keys import child_key, root_key
from dualpath.core.plan import Role
from dualpath.core.repeated_warning import RepeatedWarning
from dualpath.protocol.api import DecodeOrder, DecodeStep
from dualpath.traffic.contract import Transfer
from dualpath.vllm.worker.parts import NodeParts
from dualpath.vllm.worker.saves import SaveJob, write_out
from dualpath.vllm.worker.staged import StagedNode
from dualpath.vllm.worker.tasks import DecodeTask

_log = logging.getLogger(__name__)


class StagedDecode(StagedNode[DecodeTask]):
    """``line.DecodeNodeLine``."""

    role = Role.DECODE

    def __init__(self, parts: NodeParts, max_context_tokens: int) -> None:
        super().__init__(parts, max_context_tokens)
        self._expecting: dict[RequestId, ExitStack] = {}  # requests whose prompt a prefill engine may be moving
        self._writes: dict[asyncio.Task[None], None] = {}
        self._failures = RepeatedWarning(_log, parts.runtime)

    async def reserve(self, request_id: RequestId, num_slots: int) -> tuple[int, ...]:
        slots = await self._staged.reserve(request_id, num_slots)
        self._expect(request_id, num_slots)
        return tuple(slots)

    async def reserve_these(self, request_id: RequestId, slots: Sequence[int], limit_s: float) -> None:
        """``ranks.DecodeRankLine``."""
        await self._staged.reserve_these(request_id, slots, limit_s)
        self._expect(request_id, len(slots))

    async def used_slots(self, slots: Sequence[int]) -> tuple[int, ...]:
        """``ranks.DecodeRankLine``."""
        return tuple(self.parts.traffic.slots.used(slots))

    def _expect(self, request_id: RequestId, num_slots: int) -> None:
        self._staged.assign(request_id, range(num_slots))
        stack = self._expecting.setdefault(request_id, ExitStack())
        stack.enter_context(self.parts.traffic.expecting_peers())

    async def persist(self, order: DecodeOrder) -> AsyncIterator[DecodeStep]:
        order = self.parts.own(order)
        request_id = order.request.request_id
        self._stop_expecting(request_id)
        task = self._accept(order)
        self.tasks.add(task, order.namespace_digest)
        try:
            writing = self._write_prompt(task)
            yield DecodeStep(writing=writing, parents=tuple(task.chain[-1 - len(writing) : -1]))
            while not task.is_over:
                step = await task.steps.get()
                try:
                    if isinstance(step, OtherWeightsError):
                        raise step
                    if step is not None:
                        yield step
                finally:
                    task.steps.task_done()
        finally:
            task.stop_listening()

    async def stop(self, request_id: RequestId) -> None:
        task = self.tasks.get(request_id)
        if task is None:
            return
        task.is_stopped = True
        task.post(None)
        await task.steps.join()

    async def release(self, request_id: RequestId) -> None:
        """Writes under way go on: what they read is held for them."""
        self._stop_expecting(request_id)
        task = self.tasks.close(request_id)
        if task is not None:
            await asyncio.shield(asyncio.wrap_future(task.unpinned))
            task.is_stopped = True
            task.post(None)
            self.tasks.forget(request_id)
        self._staged.release(request_id)

    # -- from vLLM's thread, by ``parts.loop`` -----------------------------------------------------------------------

    def taken(self, request_id: RequestId) -> None:
        """vLLM has the prompt, has had it, or will compute it: the slots are free for the next."""
        self._staged.release(request_id)
        task = self.tasks.get(request_id)
        if task is not None:
            task.post(DecodeStep(admitted=True))

    def save(self, task: DecodeTask, job: SaveJob) -> None:
        """A block has filled, the next one of the request's chain."""
        if task.is_closed or task.is_stale or job.save.block != len(task.chain) - 1 or not self.parts.stores:
            job.end()
            return
        parent = task.chain[job.save.block]
        key = child_key(parent, job.save.tokens)
        task.chain.append(key)
        task.post(DecodeStep(writing=(key,), parents=(parent,)))
        self._begin_write(task, key, write_out(self.parts, job, key, parent, task.order.namespace_digest))

    def other_weights(self, tasks: Sequence[DecodeTask]) -> None:
        """Requests whose tokens we know are placed again, with those that they have. Nobody else could go on with an
        answer of vLLM's own: it goes on itself, and computes its KV again."""
        for task in tasks:
            if not (task.is_stopped or task.order.request.is_opaque):
                task.post(OtherWeightsError(f"{self.parts.traffic.engine_id} has other weights"))

    def tell_version(self, tasks: Sequence[DecodeTask], version: str) -> None:
        for task in tasks:
            task.post(DecodeStep(weight_version=version))

    # -- writes -------------------------------------------------------------------------------------------------------

    def _accept(self, order: DecodeOrder) -> DecodeTask:
        request, integrity = order.request, self.parts.integrity
        root = order.root or root_key(self.parts.namespace, request.cache_salt)
        return DecodeTask(
            request_id=request.request_id,
            order=order,
            slots=dict(self._staged.slots(request.request_id)),
            names=[] if integrity is None else integrity.names(request, order.keys, root, order.namespace_digest),
            chain=[root, *order.keys],
        )

    def _write_prompt(self, task: DecodeTask) -> tuple[BlockKey, ...]:
        """The prompt's new Full Blocks, straight from the slots where prefill has put them."""
        order = task.order
        if not self.parts.stores:
            return ()
        first = order.num_hit_tokens // self.parts.kv.geometry.block_tokens
        writes = [(order.keys[b], task.chain[b], task.slots[b]) for b in range(first, len(order.keys))]
        has_headers = self.parts.integrity is not None
        transfers = self.parts.traffic.write_blocks(
            writes, have_headers=has_headers, namespace_digest=order.namespace_digest
        )
        for (key, *_), transfer in zip(writes, transfers, strict=True):
            self._begin_write(task, key, _end_of(transfer))
        return order.keys[first:]

    def _begin_write(self, task: DecodeTask, key: BlockKey, write: Coroutine[Any, Any, None]) -> None:
        task.num_writes += 1
        writing = asyncio.create_task(self._follow(task, key, write))
        self._writes[writing] = None
        writing.add_done_callback(lambda ended: self._writes.pop(ended, None))

    async def _follow(self, task: DecodeTask, key: BlockKey, write: Coroutine[Any, Any, None]) -> None:
        """A write that fails costs a future hit, never the request, which would not end without a word of it."""
        try:
            await write
        except Exception as error:
            self._failures.log(f"request {task.request_id}: a block was not persisted: {error!r}")
            step = DecodeStep(not_persisted=(key,))
        else:
            step = DecodeStep(durable=(key,))
        task.num_writes -= 1
        task.post(step)

    def _stop_expecting(self, request_id: RequestId) -> None:
        stack = self._expecting.pop(request_id, None)
        if stack is not None:
            stack.close()

    async def close(self) -> None:
        writes = list(self._writes)
        for write in writes:
            write.cancel()
        await asyncio.gather(*writes, return_exceptions=True)


async def _end_of(transfer: Transfer[int]) -> None:
    await transfer

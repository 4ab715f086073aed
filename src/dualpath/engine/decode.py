"""The decode engine: takes prompts from its buffer into device memory, decodes them together, persists Full Blocks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from collections.abc import Sequence as Seq
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from dualpath.core.errors import DualPathError, EngineLostError, KvCorruptError, PreemptedError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey, EngineId, NodeId, PeerId, RequestId
from dualpath.core.keys import Namespace, root_key
from dualpath.core.plan import Role
from dualpath.core.request import TokenEvent
from dualpath.core.runtime import Runtime, SystemRuntime
from dualpath.core.stats import EngineStats
from dualpath.engine.api import DecodeOrder, DecodeStep, EngineInfo, ReadOutcome
from dualpath.engine.block_pool import BlockPool, device_units
from dualpath.engine.finish import finish_reason
from dualpath.engine.integrity import Integrity
from dualpath.engine.persist import Persister
from dualpath.engine.roster import Roster
from dualpath.engine.sampling import SampleJob, sample
from dualpath.engine.sequence import Sequence
from dualpath.engine.staged import StagedReads
from dualpath.engine.stats import engine_stats
from dualpath.engine.trace import ChromeTrace
from dualpath.models.seam import DecodeBatch, Model
from dualpath.traffic.manager import TrafficManager

log = logging.getLogger(__name__)

_FORWARD_END_S = 60.0  # that closing waits for the forward under way


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """Sizes are fixed at start; all memory is allocated once."""

    device_kv_tokens: int
    verifies: bool = True  # KV end to end; False: storage reads only
    max_batch_requests: int = 256
    slot_deadline_s: float = 120.0


class DecodeEngine:
    """Implements ``engine.api.DecodeEngineClient`` in this process. Methods run on one event loop."""

    def __init__(
        self,
        *,
        engine_id: EngineId,
        node_id: NodeId,
        model: Model,
        geometry: KvGeometry,
        namespace: Namespace,
        traffic: TrafficManager,
        config: DecodeConfig,
        runtime: Runtime | None = None,
        trace: ChromeTrace | None = None,
    ) -> None:
        self._engine_id, self._node_id = engine_id, node_id
        self._model, self._geometry, self._namespace = model, geometry, namespace
        self._traffic, self._config = traffic, config
        self._runtime, self._trace = runtime or SystemRuntime(), trace
        self._pool = BlockPool(geometry, geometry.blocks_for(config.device_kv_tokens), model.device)
        traffic.register_device(self._pool.tensor.view(-1, geometry.layer_block_bytes))
        self._staged = StagedReads(traffic, config.slot_deadline_s, self._runtime, is_written_by_peers=True)
        self._integrity = Integrity(traffic, namespace) if config.verifies else None
        self._persister = Persister(
            traffic, geometry, config.slot_deadline_s, self._runtime, self._free_if_unused, self._integrity
        )
        self._expecting: dict[RequestId, ExitStack] = {}  # requests whose prompt a prefill engine may be moving
        self._roster = Roster(self._pool, geometry, config.max_batch_requests)
        self._work = asyncio.Event()
        self._worker = self._runtime.worker(f"{engine_id}-model")
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._loop_task: asyncio.Task[None] | None = None
        self._num_forwards = 0

    async def start(self) -> None:
        await self._runtime.to_thread(self._traffic.start)
        self._loop_task = asyncio.create_task(self._run(), name=f"{self._engine_id}-loop")

    async def close(self) -> None:
        for task in [*self._tasks, *([self._loop_task] if self._loop_task else [])]:
            task.cancel()
        await asyncio.gather(*self._tasks, *([self._loop_task] if self._loop_task else []), return_exceptions=True)
        await self._persister.close()
        for seq in self._roster:
            seq.steps.put_nowait(EngineLostError(f"{self._engine_id} is closing"))
        await self._runtime.to_thread(self._worker.close, _FORWARD_END_S)
        await self._runtime.to_thread(self._traffic.close)

    @property
    def info(self) -> EngineInfo:
        slots = self._traffic.slots.num_slots * self._geometry.block_tokens
        rows = self._pool.num_blocks * self._geometry.block_tokens
        # The first decoded token needs a row behind the prompt.
        return EngineInfo(
            self._engine_id,
            self._traffic.peer_id,
            self._node_id,
            Role.DECODE,
            min(slots, rows - 1),
            rows,
            self._traffic.metadata(),
            self._config.verifies,
        )

    @property
    def traffic(self) -> TrafficManager:
        return self._traffic

    def check_idle(self) -> None:
        """Raise AssertionError where a request has left something behind."""
        name, roster = self._engine_id, self._roster
        assert not [*roster, *roster.leaving], f"{name}: requests wait, run or leave"
        assert not self._expecting, f"{name}: prompts are still expected"
        assert not self._staged.num_requests, f"{name}: {self._staged.num_requests} requests hold staging slots"
        self._pool.check_integrity()
        assert not self._pool.num_used, f"{name}: {self._pool.num_used} device blocks are held"

    async def add_peer(self, peer_metadata: bytes) -> None:
        await self._runtime.to_thread(self._traffic.add_peer, peer_metadata)

    async def remove_peer(self, peer: PeerId) -> None:
        await self._runtime.to_thread(self._traffic.remove_peer, peer)

    async def reserve(self, request_id: RequestId, num_slots: int) -> tuple[int, ...]:
        slots = await self._staged.reserve(request_id, num_slots)
        self._staged.assign(request_id, range(num_slots))
        stack = self._expecting.setdefault(request_id, ExitStack())
        stack.enter_context(self._traffic.expecting_peers())
        return tuple(slots)

    async def read(self, request_id: RequestId, blocks: Seq[tuple[int, BlockKey]]) -> ReadOutcome:
        return await self._staged.read(request_id, blocks)

    async def decode(self, order: DecodeOrder) -> AsyncIterator[DecodeStep]:
        seq = self._accept(order)
        try:
            while (item := await seq.steps.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self._end(seq)

    async def stop(self, request_id: RequestId) -> None:
        for seq in list(self._roster):
            if seq.request_id == request_id:
                self._end(seq)

    async def release(self, request_id: RequestId) -> None:
        """Idempotent. The request's slots stay out of use for as long as a transfer of this engine can touch them."""
        self._stop_expecting(request_id)
        self._staged.release(request_id)
        await self.stop(request_id)

    async def stats(self) -> EngineStats:
        block_bytes = self._geometry.full_block_bytes
        return engine_stats(
            self._engine_id,
            self._node_id,
            Role.DECODE,
            self._traffic,
            num_requests=len(self._expecting) + len(self._roster),
            num_forwards=self._num_forwards,
            device_kv_bytes=self._pool.num_blocks * block_bytes,
            device_kv_used_bytes=self._pool.num_used * block_bytes,
            device_kv_peak_bytes=self._pool.peak_used * block_bytes,
        )

    # -- a request's way in and out -------------------------------------------------------------------------------

    def _accept(self, order: DecodeOrder) -> Sequence:
        """The prompt's KV is complete in the decode buffer: persist it, and queue for device memory."""
        request_id = order.request.request_id
        self._stop_expecting(request_id)
        tokens = [*order.request.prompt_token_ids, order.first_token.token_id]
        root = root_key(self._namespace, order.request.cache_salt)
        parent = order.keys[-1] if order.keys else root
        seq = Sequence(order, tokens, len(tokens) - 1, parent, self._staged.slots(request_id))
        seq.names = self._integrity.names(order.request, order.keys) if self._integrity is not None else ()
        seq.finished = order.first_token.finish_reason is not None
        self._persister.write_prompt(seq, root)
        block_tokens = self._geometry.block_tokens
        if seq.finished and not seq.owes_last_block(block_tokens):
            self._end(seq)
            return seq
        if seq.finished:
            seq.post(DecodeStep(writing=(seq.key_of_last_block(block_tokens),)))
        self._roster.waiting.append(seq)
        self._work.set()
        return seq

    def _admit(self) -> None:
        for seq in self._roster.admit():
            seq.num_copies += 1  # from now on: it may end before its task begins
            self._spawn(self._join(seq))

    async def _join(self, seq: Sequence) -> None:
        """Copy a prompt from the decode buffer into device memory; then its slots are free for the next."""
        try:
            if not seq.ended:
                await self._copy_in(seq)
        except KvCorruptError as error:
            seq.error = error
        except DualPathError as error:
            seq.error = EngineLostError(f"{self._engine_id}: copy to device failed: {error}")
        finally:
            seq.num_copies -= 1
            self._roster.joining.pop(seq, None)
        self._staged.release(seq.request_id)
        if seq.ended or seq.error is not None:
            self._end(seq)
            return
        seq.post(DecodeStep(admitted=True))
        self._roster.running.append(seq)
        self._work.set()

    async def _copy_in(self, seq: Sequence) -> None:
        blocks, slots = zip(*sorted(seq.slots.items()), strict=True)
        sources = np.concatenate([self._traffic.staging_units_all_layers(slot) for slot in slots])
        units = device_units([seq.blocks[block] for block in blocks], self._geometry)
        after = None
        if self._integrity is not None:
            after = partial(self._integrity.compare, slots, seq.names, units)
        await self._traffic.copy("staging", sources, "device", units, after)

    def _end(self, seq: Sequence, error: Exception | None = None) -> None:
        """Take a request out of the batch: finished, cancelled or preempted. Idempotent."""
        if not seq.ended:
            seq.ended = True
            seq.error = seq.error or error
            self._roster.remove(seq)
            self._staged.release(seq.request_id)
            seq.settle()
        self._free_if_unused(seq)

    def _free_if_unused(self, seq: Sequence) -> None:
        if self._roster.free_if_unused(seq):
            self._work.set()

    def _stop_expecting(self, request_id: RequestId) -> None:
        stack = self._expecting.pop(request_id, None)
        if stack is not None:
            stack.close()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(lambda ended: self._tasks.pop(ended, None))

    # -- the loop -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            self._admit()
            while self._roster.running:
                await self.step()

    async def step(self) -> None:
        """Make room, decode one token for all, deliver, admit."""
        batch = self._roster.make_room(self._preempt)
        if not batch:
            await self._work.wait()  # blocks are on their way back
            self._work.clear()
            self._admit()  # what came up meanwhile is told once
            return
        try:
            events = await self._worker.call(self._decode_blocking, batch)
        except Exception as error:  # a bug or an out-of-memory in the model must not end the engine's loop
            log.exception("%s: decode failed", self._engine_id)
            self._roster.stepping = []
            for seq in batch:
                self._end(seq, EngineLostError(f"{self._engine_id}: decode failed: {error!r}"))
            return
        self._roster.stepping = []
        for seq, event in zip(batch, events, strict=True):
            self._deliver(seq, event)
        self._admit()

    def _preempt(self, seq: Sequence) -> None:
        log.info("%s: preempting %s for device memory", self._engine_id, seq.request_id)
        self._end(seq, PreemptedError("preempted for device memory"))

    def _decode_blocking(self, batch: Seq[Sequence]) -> list[TokenEvent]:
        """Model thread: one forward, one token per request."""
        start_s = self._runtime.now_s()
        logits = self._model.decode(decode_batch(batch, self._model.device), self._pool.tensor)
        events = sample(logits, [SampleJob(seq.params, len(seq.tokens)) for seq in batch])
        self._num_forwards += 1
        if self._trace is not None:
            self._trace.span(
                self._engine_id, "decode", "step", start_s, self._runtime.now_s(), {"requests": len(batch)}
            )
        return events

    def _deliver(self, seq: Sequence, event: TokenEvent) -> None:
        """One more KV row and, unless only that was owed, one more token."""
        if seq.ended:
            self._free_if_unused(seq)
            return
        block_tokens = self._geometry.block_tokens
        seq.num_kv += 1
        was_finished = seq.finished
        completed = seq.complete_block(block_tokens)
        writing: tuple[BlockKey, ...] = ()
        if completed is not None:
            block, key, parent = completed
            writing = () if was_finished else (key,)  # a finished request promised this key with its last token
            self._persister.write_block(seq, seq.blocks[block], key, parent)
        if not was_finished:
            event = finish_reason(event, seq.params, seq.num_generated + 1, self._model.spec)
            writing += seq.take(event, block_tokens)
            seq.post(DecodeStep(tokens=(event,), writing=writing))
        if was_finished or (seq.finished and not seq.owes_last_block(block_tokens)):
            self._end(seq)


def decode_batch(batch: Seq[Sequence], device: torch.device) -> DecodeBatch:
    """The tensors of one decode step. Host lists go along: kernels on CPU want Python ints."""
    positions = [seq.num_kv for seq in batch]
    width = max(len(seq.blocks) for seq in batch)
    table = np.zeros((len(batch), width), dtype=np.int32)
    for row, seq in enumerate(batch):
        table[row, : len(seq.blocks)] = seq.blocks
    return DecodeBatch(
        token_ids=torch.tensor([seq.tokens[seq.num_kv] for seq in batch], dtype=torch.int64, device=device),
        positions=torch.tensor(positions, dtype=torch.int64, device=device),
        block_table=torch.from_numpy(table).to(device),
        block_lists=[seq.blocks for seq in batch],
        position_list=positions,
    )

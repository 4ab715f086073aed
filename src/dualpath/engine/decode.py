"""The decode engine: takes prompts from its buffer into device memory, decodes them together, persists Full Blocks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from dualpath.core.errors import DualPathError, EngineLostError, InvalidRequestError, KvCorruptError, PreemptedError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey, EngineId, NodeId, RequestId
from dualpath.core.keys import Namespace, root_key
from dualpath.core.plan import Role
from dualpath.core.request import TokenEvent
from dualpath.core.runtime import Runtime
from dualpath.core.stats import EngineStats
from dualpath.engine.base import EngineBase
from dualpath.engine.block_pool import BlockPool, device_units
from dualpath.engine.finish import finish_reason
from dualpath.engine.integrity import Integrity
from dualpath.engine.persist import Persister
from dualpath.engine.phases import DecodePhase
from dualpath.engine.running_set import RunningSet
from dualpath.engine.sampling import SampleJob, sample
from dualpath.engine.sequence import Sequence
from dualpath.engine.staged import StagedReads
from dualpath.engine.trace import ChromeTrace
from dualpath.grammar.state import Grammars
from dualpath.models.seam import CapturesDecode, DecodeBatch, GraphLimits, Model, WeightUpdates
from dualpath.protocol.api import DecodeOrder, DecodeStep, EngineInfo
from dualpath.traffic.manager import TrafficManager

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """Sizes are fixed at start; all memory is allocated once."""

    device_kv_tokens: int
    verifies: bool = True  # KV end to end; False: storage reads only
    max_batch_requests: int = 256
    slot_deadline_s: float = 120.0
    graph_context_tokens: int | None = None  # decode is captured in graphs, for contexts so long; None: it is not


class DecodeEngine(EngineBase):
    """Implements ``protocol.api.DecodeEngineClient`` in this process. Methods run on one event loop."""

    role = Role.DECODE

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
        grammars: Grammars | None = None,
        updates: WeightUpdates | None = None,
    ) -> None:
        super().__init__(engine_id, node_id, model, geometry, namespace, traffic, runtime, trace, grammars, updates)
        self._config = config
        num_scratch = 0 if config.graph_context_tokens is None else 1
        self._pool = BlockPool(geometry, geometry.blocks_for(config.device_kv_tokens), model.device, num_scratch)
        traffic.register_device(self._pool.tensor.view(-1, geometry.layer_block_bytes))
        self._staged = StagedReads(traffic, config.slot_deadline_s, self._runtime, is_written_by_peers=True)
        self._integrity = Integrity(traffic, namespace) if config.verifies else None
        self._persister = Persister(
            traffic, geometry, config.slot_deadline_s, self._runtime, self._free_if_unused, self._integrity
        )
        self._expecting: dict[RequestId, ExitStack] = {}  # requests whose prompt a prefill engine may be moving
        self._running_set = RunningSet(self._pool, geometry, config.max_batch_requests)
        self._tasks: dict[asyncio.Task[None], None] = {}

    async def start(self) -> None:
        if self._config.graph_context_tokens is not None and isinstance(self._model, CapturesDecode):
            await self._worker.call(self._capture, self._model, self._config.graph_context_tokens)
        await super().start()

    def _capture(self, model: CapturesDecode, context_tokens: int) -> None:
        """Model thread."""
        pool, geometry = self._pool, self._geometry
        limits = GraphLimits(
            max_requests=min(self._config.max_batch_requests, pool.num_blocks),
            max_blocks=min(geometry.blocks_for(context_tokens + 1), pool.num_blocks),
            block_tokens=geometry.block_tokens,
            scratch_block=pool.num_blocks,
        )
        model.capture_decode(pool.tensor, limits)

    async def _close_own(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._persister.close()

    def _listeners(self) -> Iterable[asyncio.Queue[Any]]:
        return (seq.steps for seq in self._running_set)

    @property
    def info(self) -> EngineInfo:
        # The first decoded token needs a row behind the prompt.
        return self._info(self._pool.num_blocks, 1, self._config.verifies)

    def check_idle(self) -> None:
        """Raise AssertionError where a request has left something behind."""
        name, running_set = self._engine_id, self._running_set
        assert not [*running_set, *running_set.leaving], f"{name}: requests wait, run or leave"
        assert not self._expecting, f"{name}: prompts are still expected"
        assert not self._staged.num_requests, f"{name}: {self._staged.num_requests} requests hold staging slots"
        self._pool.check_integrity()
        assert not self._pool.num_used, f"{name}: {self._pool.num_used} device blocks are held"

    async def reserve(self, request_id: RequestId, num_slots: int) -> tuple[int, ...]:
        with self._spans.around(request_id, "reserve") as attributes:
            attributes["slots"] = num_slots
            slots = await self._staged.reserve(request_id, num_slots)
        self._staged.assign(request_id, range(num_slots))
        stack = self._expecting.setdefault(request_id, ExitStack())
        stack.enter_context(self._traffic.expecting_peers())
        return tuple(slots)

    async def decode(self, order: DecodeOrder) -> AsyncIterator[DecodeStep]:
        self._check_weights(order.namespace_digest)
        since_s = self._runtime.now_s()
        seq = self._accept(order)
        request_id = seq.request_id
        try:
            while (item := await seq.steps.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                if item.admitted:
                    now_s = self._runtime.now_s()
                    self._spans.add(request_id, "wait for device memory", since_s, now_s, blocks=len(seq.blocks))
                    since_s = now_s
                yield item
        finally:
            self._end(seq)
            self._spans.add(request_id, "decode", since_s, self._runtime.now_s(), tokens=seq.num_generated)
            self._spans.emit(request_id, order.request.traceparent)

    async def stop(self, request_id: RequestId) -> None:
        for seq in list(self._running_set):
            if seq.request_id == request_id:
                self._end(seq)

    async def release(self, request_id: RequestId) -> None:
        """Idempotent. The request's slots stay out of use for as long as a transfer of this engine can touch them."""
        self._stop_expecting(request_id)
        self._spans.forget(request_id)
        self._staged.release(request_id)
        await self.stop(request_id)

    async def stats(self) -> EngineStats:
        num_requests = len(self._expecting) + len(self._running_set)
        blocks = (self._pool.num_blocks, self._pool.num_used, self._pool.peak_used)
        return self._stats(num_requests, *(count * self._geometry.full_block_bytes for count in blocks))

    # -- a request's way in and out -------------------------------------------------------------------------------

    def _accept(self, order: DecodeOrder) -> Sequence:
        """The prompt's KV is complete in the decode buffer: persist it, and queue for device memory."""
        request_id = order.request.request_id
        self._stop_expecting(request_id)
        tokens = [*order.request.prompt_token_ids, order.first_token.token_id]
        root = order.root or root_key(self._namespace, order.request.cache_salt)
        parent = order.keys[-1] if order.keys else root
        seq = Sequence(order, tokens, len(tokens) - 1, parent, self._staged.slots(request_id))
        if self._integrity is not None:
            seq.names = self._integrity.names(order.request, order.keys, root, order.namespace_digest)
        seq.finished = order.first_token.finish_reason is not None
        self._persister.write_prompt(seq, root)
        block_tokens = self._geometry.block_tokens
        if seq.finished and not seq.owes_last_block(block_tokens):
            self._end(seq)
            return seq
        if seq.finished:
            seq.post(DecodeStep(writing=(seq.key_of_last_block(block_tokens),)))
        self._running_set.waiting.append(seq)
        self._work.set()
        return seq

    def _admit(self) -> None:
        for seq in self._running_set.admit():
            seq.num_copies += 1  # from now on: it may end before its task begins
            self._spawn(self._join(seq))

    async def _join(self, seq: Sequence) -> None:
        """Copy a prompt from the decode buffer into device memory; then its slots are free for the next."""
        try:
            if not seq.ended:
                if not seq.finished:
                    seq.output = await self._outputs.open(seq.order.request, seq.order.first_token.token_id)
                await self._copy_in(seq)
        except (KvCorruptError, InvalidRequestError) as error:
            seq.error = error
        except DualPathError as error:
            seq.error = EngineLostError(f"{self._engine_id}: copy to device failed: {error}")
        finally:
            seq.num_copies -= 1
            self._running_set.joining.pop(seq, None)
        self._staged.release(seq.request_id)
        if seq.ended or seq.error is not None:
            self._end(seq)
            return
        seq.enter(DecodePhase.RUNNING)
        seq.post(DecodeStep(admitted=True))
        self._running_set.running.append(seq)
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
            seq.enter(DecodePhase.ENDED)
            seq.error = seq.error or error
            self._running_set.remove(seq)
            self._staged.release(seq.request_id)
            seq.settle()
        self._free_if_unused(seq)

    def _free_if_unused(self, seq: Sequence) -> None:
        if self._running_set.free_if_unused(seq):
            self._work.set()

    def _stop_expecting(self, request_id: RequestId) -> None:
        stack = self._expecting.pop(request_id, None)
        if stack is not None:
            stack.close()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(lambda ended: self._tasks.pop(ended, None))

    def _weights_changed(self, *, is_same: bool) -> None:
        for seq in self._running_set:
            seq.post(DecodeStep(weight_version=self._weights.version))
            if is_same or seq.is_mixed:
                continue
            if seq.finished:  # it owes a block, which must not be computed any more
                seq.post(DecodeStep(not_persisted=(seq.key_of_last_block(self._geometry.block_tokens),)))
            seq.is_mixed = True
            if seq.finished:
                self._end(seq)

    # -- the loop -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            self._admit()
            while self._running_set.running:
                await self.step()

    async def step(self) -> None:
        """Make room, decode one token for all, deliver, admit."""
        await self._compute_gate.wait()
        if not self._running_set.running:
            return  # they have ended meanwhile
        batch = self._running_set.make_room(self._preempt)
        if not batch:
            await self._work.wait()  # blocks are on their way back
            self._work.clear()
            self._admit()  # what came up meanwhile is told once
            return
        with self._compute_gate.computing():
            await self._step(batch)

    async def _step(self, batch: Seq[Sequence]) -> None:
        try:
            masks = self._outputs.advance([seq.output for seq in batch])
            events = await self._worker.call(self._decode_blocking, batch, masks)
        except Exception as error:  # a bug or an out-of-memory in the model must not end the engine's loop
            log.exception("%s: decode failed", self._engine_id)
            self._running_set.stepping = []
            for seq in batch:
                self._end(seq, EngineLostError(f"{self._engine_id}: decode failed: {error!r}"))
            return
        self._running_set.stepping = []
        for seq, event in zip(batch, events, strict=True):
            if seq.output is not None and seq.output.error is not None:
                self._end(seq, InvalidRequestError(f"the grammar cannot be followed further: {seq.output.error}"))
            else:
                self._deliver(seq, event)
        self._admit()

    def _preempt(self, seq: Sequence) -> None:
        log.info("%s: preempting %s for device memory", self._engine_id, seq.request_id)
        self._end(seq, PreemptedError("preempted for device memory"))

    def _decode_blocking(self, batch: Seq[Sequence], masks: Future[None] | None) -> list[TokenEvent]:
        """Model thread: one forward, one token per request. ``masks`` of grammars are made beside it."""
        start_s = self._runtime.now_s()
        try:
            logits = self._model.decode(decode_batch(batch, self._model.device), self._pool.tensor)
            self._outputs.wait(masks)
            events = sample(logits, [SampleJob(seq.params, len(seq.tokens), seq.output) for seq in batch])
        except BaseException:
            self._compute.drain()  # kernels may still write the requests' blocks, which are free after this
            raise
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
        if completed is not None and not seq.is_mixed:
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

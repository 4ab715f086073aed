"""The prefill engine: reads its share of the hits, runs layer-streamed forward batches, hands the prompt over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dualpath.core.errors import DualPathError, EngineLostError, OtherWeightsError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey, EngineId, NodeId, PeerId, RequestId
from dualpath.core.keys import Namespace
from dualpath.core.plan import Role
from dualpath.core.request import TokenEvent
from dualpath.core.runtime import Runtime
from dualpath.core.stats import EngineStats
from dualpath.engine.base import EngineBase
from dualpath.engine.batch import BatchLimits, Quota, no_quota
from dualpath.engine.failed_forwards import FailedForward, FailedForwards
from dualpath.engine.finish import finish_reason
from dualpath.engine.forward_digests import ForwardDigests
from dualpath.engine.integrity import Integrity
from dualpath.engine.layer_stream import WorkspaceStream
from dualpath.engine.prefill_batch import Batch, PrefillJob, blocks_used, choose, flows
from dualpath.engine.sampling import PromptLogprob, SampleJob, logprobs, sample
from dualpath.engine.staged import StagedReads
from dualpath.engine.stats import Stalls
from dualpath.engine.trace import ChromeTrace
from dualpath.engine.workspace import Workspace
from dualpath.grammar.state import Grammars
from dualpath.models.seam import Model, WeightUpdates
from dualpath.protocol.api import EngineInfo, PrefillOrder, ReadOutcome
from dualpath.traffic.manager import TrafficManager

log = logging.getLogger(__name__)

_MAX_LOGITS_BYTES = 256 << 20  # of one forward, where each new token's are wanted
_SET_ASIDE_AFTER_S = 1.0  # that a failed forward's transfers take to end, where another workspace is there


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """Sizes are fixed at start; all memory is allocated once."""

    workspace_tokens: int  # device KV rows of one layer: the longest prompt, or the sum of a batch's prompts
    verifies: bool = True  # KV end to end; False: storage reads only
    streams_layers: bool = True  # False: all layers of whole requests in device memory, no transfer beside compute
    max_batch_tokens: int = 8192  # new tokens in one forward
    slot_deadline_s: float = 120.0
    transfer_deadline_s: float = 30.0


class PrefillEngine(EngineBase):
    """Implements ``protocol.api.PrefillEngineClient`` in this process. Methods run on one event loop."""

    role = Role.PREFILL

    def __init__(
        self,
        *,
        engine_id: EngineId,
        node_id: NodeId,
        model: Model,
        geometry: KvGeometry,
        namespace: Namespace,
        traffic: TrafficManager,
        config: PrefillConfig,
        runtime: Runtime | None = None,
        quota: Quota = no_quota,
        trace: ChromeTrace | None = None,
        grammars: Grammars | None = None,
        updates: WeightUpdates | None = None,
    ) -> None:
        super().__init__(engine_id, node_id, model, geometry, namespace, traffic, runtime, trace, grammars, updates)
        self._config, self._quota = config, quota
        self._workspace = workspace = Workspace(
            geometry,
            config.workspace_tokens,
            model.device,
            streams_layers=config.streams_layers,
            clock=self._runtime,
            deadline_s=config.slot_deadline_s,
        )
        traffic.register_device(workspace.tensor.view(-1, geometry.layer_block_bytes))
        self._integrity = Integrity(traffic, namespace) if config.verifies else None
        if config.verifies:
            traffic.register_pages(workspace.num_pages)
        max_requests = model.spec.max_requests_per_forward
        max_logits = max(1, _MAX_LOGITS_BYTES // (4 * model.spec.vocab_size))
        self._limits = BatchLimits(
            config.max_batch_tokens, workspace.num_blocks, geometry.block_tokens, max_requests, max_logits
        )
        self._staged = StagedReads(traffic, config.slot_deadline_s, self._runtime, is_written_by_peers=False)
        self._ready: list[PrefillJob] = []
        self._running: list[PrefillJob] = []
        self._idle = asyncio.Event()  # no forward is running
        self._idle.set()
        self._stalls = Stalls(geometry.num_layers)
        self._failed = FailedForwards(engine_id, workspace, self._runtime)
        self._failure: FailedForward | None = None  # of the forward that has just failed

    async def _close_own(self) -> None:
        await self._failed.close()
        self._workspace.close()

    def _listeners(self) -> Iterable[asyncio.Queue[Any]]:
        return (job.events for job in [*self._ready, *self._running])

    @property
    def info(self) -> EngineInfo:
        return self._info(self._limits.workspace_blocks, 0, self._config.verifies)

    def check_idle(self) -> None:
        """Raise AssertionError where a request has left something behind."""
        name = self._engine_id
        assert not [*self._ready, *self._running], f"{name}: forwards wait or run"
        assert not self._staged.num_requests, f"{name}: {self._staged.num_requests} requests hold staging slots"
        assert not len(self._failed), f"{name}: transfers of failed forwards have not ended"
        assert not self._workspace.used_bytes, f"{name}: {self._workspace.used_bytes} bytes of device memory are held"

    @property
    def lost(self) -> str | None:
        """Why this engine will never serve again; None where it does, or will."""
        return self._model.lost

    async def peer_at_rest(self, peer: PeerId) -> None:
        await self._runtime.to_thread(self._traffic.peer_at_rest, peer)

    async def reserve(self, request_id: RequestId, num_slots: int, num_prompt_blocks: int) -> None:
        self._check_alive()
        with self._spans.around(request_id, "reserve") as attributes:
            attributes["slots"] = num_slots
            await self._workspace.reserve(request_id, num_prompt_blocks)
            await self._staged.reserve(request_id, num_slots)

    async def read(
        self, request_id: RequestId, blocks: Sequence[tuple[int, BlockKey]], namespace_digest: bytes = b""
    ) -> ReadOutcome:
        self._check_alive()
        return await super().read(request_id, blocks, namespace_digest)

    async def prefill(self, order: PrefillOrder) -> AsyncIterator[TokenEvent | None]:
        self._check_alive()
        output = await self._outputs.open(order.request)
        request_id = order.request.request_id
        num_blocks = self._geometry.blocks_for(len(order.request.prompt_token_ids))
        await self._workspace.reserve(request_id, num_blocks)  # without hits nothing has been reserved yet
        slots = self._staged.slots(request_id)
        job = PrefillJob(order, {b: slots[b] for b in order.prefill_blocks}, order.num_hit_tokens, output=output)
        if self._integrity is not None:
            job.names = self._integrity.names(order.request, order.keys, order.root, order.namespace_digest)
        self._check_weights(order.namespace_digest)
        self._ready.append(job)
        self._work.set()
        try:
            while True:
                event = await job.events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if event is not None:
                    return
        finally:
            self._spans.emit(request_id, order.request.traceparent)
            job.end()
            if job in self._ready:
                self._ready.remove(job)

    async def release(self, request_id: RequestId) -> bool:
        if any(job.order.request.request_id == request_id for job in self._running):
            await self._idle.wait()
        if self._failed.may_arrive(request_id):
            return False
        self._spans.forget(request_id)
        self._staged.release(request_id)
        self._workspace.release(request_id)
        return True

    async def stats(self) -> EngineStats:
        self._check_alive()
        memory = self._workspace
        used = (memory.num_bytes, memory.used_bytes, memory.peak_bytes)
        return self._stats(self._staged.num_requests, *used, **self._stalls.counts())

    def _check_alive(self) -> None:
        if self.lost is not None:
            raise EngineLostError(f"{self._engine_id}: {self.lost}")
        if not self._workspace.is_usable:
            raise EngineLostError(f"{self._engine_id} is out of service")

    def _weights_changed(self, *, is_same: bool) -> None:
        if is_same:
            return
        for job in self._ready:  # it may have KV of the former weights
            job.end(OtherWeightsError(f"{self._engine_id} has other weights"))
        self._ready = []

    # -- the loop -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._ready:
                await self.step()
                if not self._workspace.is_usable:
                    await self._out_of_service()

    async def step(self) -> None:
        """Choose a batch, stream its layers, hand over."""
        await self._compute_gate.wait()
        if not self._ready:
            return  # they have ended meanwhile
        batch = choose(self._ready, self._limits, self._quota)
        if not batch:
            self._ready.pop(0).end(EngineLostError("the prompt does not fit the prefill workspace"))
            return
        self._running = [job for job, _ in batch]
        self._ready = [job for job in self._ready if job not in self._running]
        self._idle.clear()
        with self._compute_gate.computing():
            await self._step(batch)

    async def _step(self, batch: Batch) -> None:
        try:
            self._hand_over(batch, *await self._forward(batch))
        except DualPathError as error:
            self._take_failure(batch, error)
        except Exception as error:  # a bug or an out-of-memory in the model must not end the engine's loop
            log.exception("%s: forward failed", self._engine_id)
            self._take_failure(batch, EngineLostError(repr(error)))
        finally:
            self._running = []
            self._workspace.set_batch(0)
            self._idle.set()

    async def _forward(self, batch: Batch) -> tuple[dict[int, TokenEvent], list[list[PromptLogprob]]]:
        for job, _ in batch:
            job.compute()
        self._workspace.set_batch(blocks_used(batch, self._geometry))
        self._num_forwards += 1
        return await self._worker.call(self._forward_blocking, batch)

    def _forward_blocking(self, batch: Batch) -> tuple[dict[int, TokenEvent], list[list[PromptLogprob]]]:
        """Model thread: first tokens of prompts that are complete, by row, and of prompt tokens what was asked for.

        No transfer touches the workspace afterwards, or the stream is stuck.
        """
        start_s, has_spare = self._runtime.now_s(), self._workspace.has_spare
        digests = self._digests(batch)
        stream = self._open_stream(batch, digests)
        try:
            items = [job.item(chunk, self._geometry.block_tokens) for job, chunk in batch]
            logits = self._model.prefill(items, stream)
            stream.finish()
            if digests is not None:
                digests.keep()
        except BaseException:
            patience_s = _SET_ASIDE_AFTER_S if has_spare else self._config.transfer_deadline_s
            self._failure = FailedForward(stream, is_stuck=not stream.abandon(patience_s))
            raise
        end_s = self._runtime.now_s()
        self._stalls.add(stream.stall_s, stream.push_s, end_s - start_s)
        if self._spans.is_on:
            self._note_forward(batch, stream, start_s, end_s)
        if self._trace is not None:
            stall_s = sum(stream.stall_s)
            args = {"requests": len(batch), "new_tokens": sum(c.num_new for _, c in batch), "wait_s": stall_s}
            self._trace.span(self._engine_id, "forward", "forward", start_s, end_s, args)
        rows = logits.split([item.num_logits for item in items])
        told = [_prompt_logprobs(job, own) for (job, _), own in zip(batch, rows, strict=True)]
        return _first_tokens(batch, torch.stack([own[-1] for own in rows])), told

    def _note_forward(self, batch: Batch, stream: WorkspaceStream, start_s: float, end_s: float) -> None:
        """Spans of the forward for each request of the batch. Transfers of all of them go layer by layer together."""
        loads, pushes = flows(batch, self._geometry)
        layer_bytes = self._geometry.full_block_bytes
        loaded, pushed = (sum(len(flow.slots) for flow in way) * layer_bytes for way in (loads, pushes))
        stall_s = sum(stream.stall_s)
        for job, chunk in batch:
            request_id = job.order.request.request_id
            own = {"requests": len(batch), "new_tokens": chunk.num_new, "cached_tokens": job.num_done}
            self._spans.add(request_id, "forward", start_s, end_s, stall_s=stall_s, **own)
            if loads:
                self._spans.add(request_id, "kv pull", stream.begun_s, stream.loaded_s, bytes=loaded)
            if pushes and stream.first_push_s is not None:
                self._spans.add(request_id, "kv push", stream.first_push_s, end_s, bytes=pushed)

    def _digests(self, batch: Batch) -> ForwardDigests | None:
        if self._integrity is None:
            return None
        return ForwardDigests(self._traffic, self._integrity, self._geometry, batch, self._workspace.first_page)

    def _open_stream(self, batch: Batch, digests: ForwardDigests | None) -> WorkspaceStream:
        loads, pushes = flows(batch, self._geometry)
        return self._workspace.stream(
            self._traffic,
            *self._workspace.in_use,
            self._geometry.num_layers,
            loads,
            pushes,
            self._runtime,
            self._config.transfer_deadline_s,
            self._trace,
            self._engine_id,
            digests,
            self._compute,
        )

    def _hand_over(
        self, batch: Batch, first: Mapping[int, TokenEvent], told: Sequence[Sequence[PromptLogprob]]
    ) -> None:
        """Requests whose prompt is complete get their first token; chunked ones go back to the head of the line."""
        done, unfinished = [], []
        for row, (job, chunk) in enumerate(batch):
            job.num_done += chunk.num_new
            job.prompt_logprobs += told[row]
            job.hits_pushed = True
            if job.num_left == 0:
                done.append((row, job))
            elif not job.has_ended:
                unfinished.append(job)
        self._wait_again(unfinished)
        for row, job in done:
            self._workspace.release(job.order.request.request_id)
            event = first[row]
            if job.wants_prompt_logprobs:
                event = replace(event, prompt_logprobs=tuple(job.prompt_logprobs))
            job.end(finish_reason(event, job.order.request.sampling, 1, self._model.spec))

    def _wait_again(self, jobs: Sequence[PrefillJob]) -> None:
        for job in jobs:
            job.wait()
        self._ready = [*jobs, *self._ready]

    def _take_failure(self, batch: Batch, error: DualPathError) -> None:
        failure, self._failure = self._failure, None
        self._wait_again(self._failed.take(batch, error, failure))

    async def _out_of_service(self) -> None:
        """Until the transfers that failed forwards left behind have ended."""
        log.error("%s: out of service: transfers of failed forwards do not end", self._engine_id)
        for job in self._ready:
            job.end(EngineLostError(f"{self._engine_id} is out of service"))
        self._ready = []
        await self._failed.until_usable()
        log.warning("%s: back in service", self._engine_id)


def _prompt_logprobs(job: PrefillJob, logits: torch.Tensor) -> list[PromptLogprob]:
    """Of the prompt tokens behind the new ones; ``logits`` after each of those."""
    num_top, first = job.order.request.sampling.num_prompt_logprobs, job.num_done + 1
    token_ids = job.order.request.prompt_token_ids[first : first + len(logits)]
    if num_top is None or not token_ids:
        return []
    return logprobs(logits[: len(token_ids)], token_ids, [num_top] * len(token_ids))


def _first_tokens(batch: Batch, logits: torch.Tensor) -> dict[int, TokenEvent]:
    """By row, of requests whose last new token this was."""
    rows = [row for row, (job, chunk) in enumerate(batch) if chunk.num_new == job.num_left]
    if not rows:
        return {}
    orders = [(batch[row][0].order.request, batch[row][0].output) for row in rows]
    jobs = [SampleJob(request.sampling, len(request.prompt_token_ids), output) for request, output in orders]
    return dict(zip(rows, sample(logits[rows], jobs), strict=True))

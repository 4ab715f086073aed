"""The prefill engine: reads its share of the hits, runs layer-streamed forward batches, hands the prompt over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import torch

from dualpath.core.errors import DualPathError, EngineLostError, KvCorruptError, PathBrokenError, TransferError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey, EngineId, NodeId, PeerId, RequestId
from dualpath.core.keys import Namespace
from dualpath.core.plan import Role
from dualpath.core.request import TokenEvent
from dualpath.core.runtime import Runtime, SystemRuntime
from dualpath.core.stats import EngineStats
from dualpath.engine.api import EngineInfo, PrefillOrder, ReadOutcome
from dualpath.engine.batch import BatchLimits, Quota, no_quota
from dualpath.engine.finish import finish_reason
from dualpath.engine.forward_digests import ForwardDigests
from dualpath.engine.integrity import Integrity
from dualpath.engine.layer_stream import WorkspaceStream
from dualpath.engine.prefill_batch import Batch, Job, blocks_used, choose, flows
from dualpath.engine.sampling import SampleJob, sample
from dualpath.engine.staged import StagedReads
from dualpath.engine.stats import engine_stats
from dualpath.engine.trace import ChromeTrace
from dualpath.engine.workspace import Workspace
from dualpath.models.seam import Model
from dualpath.traffic.contract import Transfer
from dualpath.traffic.manager import TrafficManager

log = logging.getLogger(__name__)

_FORWARD_END_S = 60.0  # that closing waits for the forward under way
_SET_ASIDE_AFTER_S = 1.0  # that a failed forward's transfers take to end, where another workspace is there


@dataclass(frozen=True, slots=True)
class Leftover:
    """A failed forward whose transfers have not ended: they may touch its workspace."""

    stream: WorkspaceStream
    workspace: int


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """Sizes are fixed at start; all memory is allocated once."""

    workspace_tokens: int  # device KV rows of one layer: the longest prompt, or the sum of a batch's prompts
    verifies: bool = True  # KV end to end; False: storage reads only
    streams_layers: bool = True  # False: all layers of whole requests in device memory, no transfer beside compute
    max_batch_tokens: int = 8192  # new tokens in one forward
    slot_deadline_s: float = 120.0
    transfer_deadline_s: float = 30.0


class PrefillEngine:
    """Implements ``engine.api.PrefillEngineClient`` in this process. Methods run on one event loop."""

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
    ) -> None:
        self._engine_id, self._node_id = engine_id, node_id
        self._model, self._geometry, self._traffic = model, geometry, traffic
        self._config, self._runtime = config, runtime or SystemRuntime()
        self._quota, self._trace = quota, trace
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
        self._limits = BatchLimits(config.max_batch_tokens, workspace.num_blocks, geometry.block_tokens, max_requests)
        self._staged = StagedReads(traffic, config.slot_deadline_s, self._runtime, is_written_by_peers=False)
        self._ready: list[Job] = []
        self._running: list[Job] = []
        self._idle = asyncio.Event()  # no forward is running
        self._idle.set()
        self._work = asyncio.Event()
        self._failed: WorkspaceStream | None = None  # of the forward that has just failed
        self._is_stuck = False  # its transfers may touch the workspace
        self._unsettled: dict[RequestId, list[Transfer[int]]] = {}  # pushes of failed forwards, where they may arrive
        self._leftovers: dict[Leftover, asyncio.Task[None]] = {}
        self._usable = asyncio.Event()  # there is a workspace that nothing touches
        self._usable.set()
        self._worker = self._runtime.worker(f"{engine_id}-model")
        self._loop_task: asyncio.Task[None] | None = None
        self._num_forwards = 0

    async def start(self) -> None:
        await self._runtime.to_thread(self._traffic.start)
        self._loop_task = asyncio.create_task(self._run(), name=f"{self._engine_id}-loop")

    async def close(self) -> None:
        tasks = [*self._leftovers.values(), *([self._loop_task] if self._loop_task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._runtime.to_thread(self._worker.close, _FORWARD_END_S)
        self._workspace.close()
        for job in [*self._ready, *self._running]:
            job.events.put_nowait(EngineLostError(f"{self._engine_id} is closing"))
        await self._runtime.to_thread(self._traffic.close)

    @property
    def info(self) -> EngineInfo:
        slots = self._traffic.slots.num_slots * self._geometry.block_tokens
        rows = self._limits.workspace_blocks * self._geometry.block_tokens
        return EngineInfo(
            self._engine_id,
            self._traffic.peer_id,
            self._node_id,
            Role.PREFILL,
            min(slots, rows),
            rows,
            self._traffic.metadata(),
            self._config.verifies,
        )

    @property
    def traffic(self) -> TrafficManager:
        return self._traffic

    def check_idle(self) -> None:
        """Raise AssertionError where a request has left something behind."""
        name = self._engine_id
        assert not [*self._ready, *self._running], f"{name}: forwards wait or run"
        assert not self._staged.num_requests, f"{name}: {self._staged.num_requests} requests hold staging slots"
        assert not [*self._unsettled, *self._leftovers], f"{name}: transfers of failed forwards have not ended"
        assert not self._workspace.used_bytes, f"{name}: {self._workspace.used_bytes} bytes of device memory are held"

    @property
    def lost(self) -> str | None:
        """Why this engine will never serve again; None where it does, or will."""
        return self._model.lost

    async def add_peer(self, peer_metadata: bytes) -> None:
        await self._runtime.to_thread(self._traffic.add_peer, peer_metadata)

    async def remove_peer(self, peer: PeerId) -> None:
        await self._runtime.to_thread(self._traffic.remove_peer, peer)

    async def peer_at_rest(self, peer: PeerId) -> None:
        await self._runtime.to_thread(self._traffic.peer_at_rest, peer)

    async def reserve(self, request_id: RequestId, num_slots: int, num_prompt_blocks: int) -> None:
        self._check_alive()
        await self._workspace.reserve(request_id, num_prompt_blocks)
        await self._staged.reserve(request_id, num_slots)

    async def read(self, request_id: RequestId, blocks: Sequence[tuple[int, BlockKey]]) -> ReadOutcome:
        self._check_alive()
        return await self._staged.read(request_id, blocks)

    async def prefill(self, order: PrefillOrder) -> AsyncIterator[TokenEvent | None]:
        self._check_alive()
        request_id = order.request.request_id
        num_blocks = self._geometry.blocks_for(len(order.request.prompt_token_ids))
        await self._workspace.reserve(request_id, num_blocks)  # without hits nothing has been reserved yet
        slots = self._staged.slots(request_id)
        job = Job(order, {b: slots[b] for b in order.prefill_blocks}, order.num_hit_tokens)
        if self._integrity is not None:
            job.names = self._integrity.names(order.request, order.keys)
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
            job.cancelled = True
            if job in self._ready:
                self._ready.remove(job)

    async def release(self, request_id: RequestId) -> bool:
        if any(job.order.request.request_id == request_id for job in self._running):
            await self._idle.wait()
        if not all(transfer.settled.done() for transfer in self._unsettled.get(request_id, ())):
            return False  # what its forward left behind may still write decode buffers
        self._unsettled.pop(request_id, None)
        self._staged.release(request_id)
        self._workspace.release(request_id)
        return True

    async def stats(self) -> EngineStats:
        self._check_alive()
        return engine_stats(
            self._engine_id,
            self._node_id,
            Role.PREFILL,
            self._traffic,
            num_requests=self._staged.num_requests,
            num_forwards=self._num_forwards,
            device_kv_bytes=self._workspace.num_bytes,
            device_kv_used_bytes=self._workspace.used_bytes,
            device_kv_peak_bytes=self._workspace.peak_bytes,
        )

    def _check_alive(self) -> None:
        if self.lost is not None:
            raise EngineLostError(f"{self._engine_id}: {self.lost}")
        if not self._workspace.is_usable:
            raise EngineLostError(f"{self._engine_id} is out of service")

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
        batch = choose(self._ready, self._limits, self._quota)
        if not batch:
            self._ready.pop(0).events.put_nowait(EngineLostError("the prompt does not fit the prefill workspace"))
            return
        self._running = [job for job, _ in batch]
        self._ready = [job for job in self._ready if job not in self._running]
        self._idle.clear()
        try:
            self._hand_over(batch, await self._forward(batch))
        except DualPathError as error:
            self._after_failure(batch, error)
        except Exception as error:  # a bug or an out-of-memory in the model must not end the engine's loop
            log.exception("%s: forward failed", self._engine_id)
            self._after_failure(batch, EngineLostError(repr(error)))
        finally:
            self._running = []
            self._workspace.set_batch(0)
            self._idle.set()

    async def _forward(self, batch: Batch) -> torch.Tensor:
        for job, _ in batch:
            if not job.started:
                job.started = True
                job.events.put_nowait(None)
        self._workspace.set_batch(blocks_used(batch, self._geometry))
        self._num_forwards += 1
        return await self._worker.call(self._forward_blocking, batch)

    def _forward_blocking(self, batch: Batch) -> torch.Tensor:
        """Model thread. No transfer touches the workspace afterwards, or the stream is stuck."""
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
            self._failed, self._is_stuck = stream, not stream.abandon(patience_s)
            raise
        if self._trace is not None:
            args = {"requests": len(batch), "new_tokens": sum(c.num_new for _, c in batch), "wait_s": stream.wait_s}
            self._trace.span(self._engine_id, "forward", "forward", start_s, self._runtime.now_s(), args)
        return logits

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
        )

    def _hand_over(self, batch: Batch, logits: torch.Tensor) -> None:
        """Requests whose prompt is complete get their first token; chunked ones go back to the head of the line."""
        done, unfinished = [], []
        for row, (job, chunk) in enumerate(batch):
            job.num_done += chunk.num_new
            job.hits_pushed = True
            if job.num_left == 0:
                done.append((row, job))
            elif not job.cancelled:
                unfinished.append(job)
        self._ready = [*unfinished, *self._ready]
        if not done:
            return
        jobs = [SampleJob(j.order.request.sampling, len(j.order.request.prompt_token_ids)) for _, j in done]
        for _, job in done:
            self._workspace.release(job.order.request.request_id)
        for (_, job), event in zip(done, sample(logits[[row for row, _ in done]], jobs), strict=True):
            job.events.put_nowait(finish_reason(event, job.order.request.sampling, 1, self._model.spec))

    def _after_failure(self, batch: Batch, error: DualPathError) -> None:
        """A lone request is told; several are run again one by one, so that only the one at fault fails.

        But not into a decode buffer where pushes of this forward may still arrive.
        """
        log.warning("%s: a forward of %d requests failed: %s", self._engine_id, len(batch), error)
        stream, self._failed = self._failed, None
        unsettled = {} if stream is None else stream.unsettled()
        if stream is not None and self._is_stuck:
            self._set_aside(stream)
        again: list[Job] = []
        for job, _ in batch:
            left = unsettled.get(job.order.decode_peer)
            if left:
                self._unsettled.setdefault(job.order.request.request_id, []).extend(left)
            if left or len(batch) == 1 or self._is_stuck or not isinstance(error, TransferError):
                job.events.put_nowait(self._explain(job, error))
            elif not job.cancelled:
                job.alone = True
                again.append(job)
        self._is_stuck = False
        self._ready = [*again, *self._ready]

    def _explain(self, job: Job, error: DualPathError) -> DualPathError:
        if isinstance(error, KvCorruptError):
            return error
        kind = PathBrokenError if isinstance(error, TransferError) else EngineLostError
        return kind(f"{self._engine_id}: prefill with {job.order.decode_peer} failed: {error}")

    def _set_aside(self, stream: WorkspaceStream) -> None:
        """Leave a stuck forward's workspace to its transfers."""
        leftover = Leftover(stream, self._workspace.set_aside())
        self._leftovers[leftover] = asyncio.create_task(self._await_end(leftover))
        if self._workspace.is_usable:
            log.warning("%s: transfers of a failed forward do not end; goes on in the spare workspace", self._engine_id)
        else:
            self._usable.clear()

    async def _await_end(self, leftover: Leftover) -> None:
        while not await self._runtime.to_thread(leftover.stream.abandon, 1.0):
            pass
        del self._leftovers[leftover]
        self._workspace.take_back(leftover.workspace)
        self._usable.set()
        log.warning("%s: transfers of a failed forward have ended", self._engine_id)

    async def _out_of_service(self) -> None:
        """Until the transfers that failed forwards left behind have ended."""
        log.error("%s: out of service: transfers of failed forwards do not end", self._engine_id)
        for job in self._ready:
            job.events.put_nowait(EngineLostError(f"{self._engine_id} is out of service"))
        self._ready = []
        await self._usable.wait()
        log.warning("%s: back in service", self._engine_id)

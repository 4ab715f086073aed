"""The cluster as a gateway sees it: requests in, tokens out, records and statistics; nothing left on close.

Composition of what runs where requests come in; what all gateways share is the desk's. A request's task
(dualpath.scheduler.coordinator) belongs to the service, not to the client's stream: the last token is the client's at
once, while writes and releases go on. Event loop only.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Sequence

from dualpath.core.errors import DualPathError, InvalidRequestError, OverloadedError, RequestAbortedError
from dualpath.core.ids import RequestId
from dualpath.core.keys import KnownPrefixes, Namespace
from dualpath.core.latency import Latencies
from dualpath.core.phase import Phase
from dualpath.core.request import RecordQuery, Request, RequestRecord, TokenEvent
from dualpath.core.runtime import Runtime, SystemRuntime
from dualpath.core.stats import ClusterFacts, ClusterStats, NodeStats
from dualpath.protocol.api import DecodeEngineClient, PrefillEngineClient
from dualpath.scheduler.attempt import Attempt, Steps
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.control import Control
from dualpath.scheduler.coordinator import Coordinator
from dualpath.scheduler.demand import too_long
from dualpath.scheduler.desk.api import DeskClient
from dualpath.scheduler.follows import EndedTurns
from dualpath.scheduler.gate import Gate
from dualpath.scheduler.holding import Releaser
from dualpath.scheduler.job import Job, new_job
from dualpath.scheduler.records import RecordBook
from dualpath.scheduler.spans import traced
from dualpath.scheduler.tasks import TaskSet

_log = logging.getLogger(__name__)

_CLOSE_GRACE_S = 30.0  # for releases, after the last request has ended or was cancelled


class Service:
    """Built inside the serving event loop, over engines that are ready and a seat at the desk that knows them."""

    def __init__(
        self,
        desk: DeskClient,
        *,
        prefill_engines: Sequence[PrefillEngineClient],
        decode_engines: Sequence[DecodeEngineClient],
        namespace: Namespace,
        model_name: str,
        max_context_tokens: int,
        config: SchedulerConfig | None = None,
        runtime: Runtime | None = None,
        describe_nodes: Callable[[], tuple[NodeStats, ...]] = tuple,
        facts: ClusterFacts | None = None,
        scope: str = "",
        control: Callable[..., Control] = Control,
    ) -> None:
        """``scope``: of a gateway beside others, a name of its own: engines know its requests by that, too.

        ``control``: takes what ``Control`` does.
        """
        self._scope = scope
        self.model_name = model_name
        self.config = config = config or SchedulerConfig()
        self._runtime = runtime = runtime or SystemRuntime()
        self._describe_nodes = describe_nodes
        self._namespace = namespace
        self._desk = desk
        self._prefill = {engine.info.engine_id: engine for engine in prefill_engines}
        self._decode = {engine.info.engine_id: engine for engine in decode_engines}
        decode_tokens = (engine.info.device_kv_tokens for engine in self._decode.values())
        self.max_context_tokens = min(max_context_tokens, max(decode_tokens, default=0))
        self._tasks = TaskSet()
        self._releaser = Releaser(config, runtime, self._tasks, desk.released, desk.is_gone)
        gate = Gate()
        self._steps = steps = Steps(desk, namespace, config, gate, KnownPrefixes(namespace.geometry.block_tokens))
        self._coordinator = Coordinator(self._prefill, self._decode, steps, self._releaser, desk, runtime, gate)
        desk.on_engine_lost = self._coordinator.engine_lost
        self._records = RecordBook(config.max_finished_records)
        self._sequence = itertools.count()
        self._token_gaps = Latencies()
        self._turns = EndedTurns(namespace.geometry.block_tokens)
        self._facts = facts
        self._running: dict[Job, asyncio.Task[None]] = {}
        self._is_open = False
        self.control = control(desk, self._coordinator, gate, runtime, self._abort, self._records)

    # -- life cycle ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Accept requests from now on: the desk is ready to place them."""
        self._is_open = True

    async def close(self, drain_s: float = 30.0) -> None:
        """Refuse new requests, let running ones end for ``drain_s``, cancel the rest; nothing is held on return."""
        self._is_open = False
        if not await self._tasks.wait(drain_s):
            for job in list(self._running):
                self._cancel(job, DualPathError("the server is shutting down"))
            self._releaser.hurry()
            if not await self._tasks.wait(_CLOSE_GRACE_S):
                _log.error("closing with %d tasks unfinished", len(self._tasks))
        await self._tasks.cancel()

    def ready(self) -> bool:
        return self._is_open and self._desk.has_engines

    def accepts(self) -> bool:
        """Whether a request is worth sending: engines are there, or were until less than ``retry_budget_s`` ago."""
        return self._is_open and self._desk.alone_s <= self.config.retry_budget_s

    def problems(self) -> tuple[str, ...]:
        """What an operator should know although requests are served. Without names: anybody may ask."""
        return self._desk.problems()

    # -- requests -----------------------------------------------------------------------------------------------------

    def generate(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        """The request's tokens. Refusals are raised here, before anything runs; it is queued with the first ``anext``.

        Closing the stream, or cancelling whoever awaits it, cancels the request everywhere. After the event with the
        finish reason nothing is cancelled any more: the rest is the service's.
        """
        self._admit(request)
        return self._stream(request)

    def _admit(self, request: Request) -> None:
        """Raise what refuses the request."""
        if not self._is_open:
            raise OverloadedError("the server does not accept requests now", retry_after_s=self.config.retry_after_s)
        num_prompt = len(request.prompt_token_ids)
        if num_prompt == 0:
            raise InvalidRequestError("the prompt is empty", param="messages")
        if request.sampling.max_tokens < 1:
            raise InvalidRequestError("max_tokens must be at least 1", param="max_tokens")
        if self._is_in_use(request.request_id):
            raise InvalidRequestError(f"request id {request.request_id} is in use", param="request_id")
        if num_prompt > self._desk.max_prompt_tokens:
            raise too_long(num_prompt, self._desk.max_prompt_tokens)
        if num_prompt + request.sampling.max_tokens > self.max_context_tokens:
            raise too_long(num_prompt + request.sampling.max_tokens, self.max_context_tokens)
        if self._desk.is_full:
            raise OverloadedError("too many requests are waiting", retry_after_s=self.config.retry_after_s)

    def _is_in_use(self, request_id: RequestId) -> bool:
        return (
            self._records.is_running(request_id) or self._releaser.is_held(request_id) or self._desk.is_held(request_id)
        )

    async def _stream(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        self._admit(request)
        request, on_end = traced(request, self._end, self._runtime)
        number = -1 if self._scope else next(self._sequence)  # the desk's, where there are other gateways
        job = new_job(request, number, self._runtime, on_end, self.config, self._token_gaps)
        job.scope = self._scope
        self._steps.name_blocks(job, self._desk.epoch)
        job.record.follows = self._turns.followed(job)
        self._records.add(job)
        task = self._tasks.spawn(self._serve(job))
        self._running[job] = task
        task.add_done_callback(lambda _: self._running.pop(job))
        events = job.events
        try:
            while True:
                while not events.items:
                    await events.filled()
                event = events.items.popleft()
                if isinstance(event, Exception):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            if not job.is_over:
                self._cancel(job)

    def _end(self, job: Job) -> None:
        self._turns.ended(job)
        self._records.end(job)

    def _cancel(self, job: Job, error: Exception | None = None) -> None:
        """What has been computed is still persisted: who stops reading may well come back with a next turn."""
        job.end(Phase.CANCELLED, error)
        attempt = self._coordinator.decoding(job)
        if attempt is None:
            self._running[job].cancel()
        else:
            self._tasks.spawn(self._stop_decoding(job, attempt))

    def _abort(self, request_ids: Collection[RequestId] | None) -> int:
        """None: all."""
        jobs = [job for job in self._running if request_ids is None or job.request.request_id in request_ids]
        alive = [job for job in jobs if not job.is_over]
        for job in alive:
            self._cancel(job, RequestAbortedError("the request was aborted"))
        return len(alive)

    async def _stop_decoding(self, job: Job, attempt: Attempt) -> None:
        try:
            async with asyncio.timeout(self.config.release_timeout_s):
                await attempt.decode.stop(attempt.request.request_id)
        except Exception as error:
            _log.warning("%s: stopping failed: %r", attempt.request.request_id, error)
            if job in self._running:
                self._running[job].cancel()

    async def _serve(self, job: Job) -> None:
        try:
            await self._coordinator.serve(job)
        except asyncio.CancelledError:
            job.end(Phase.CANCELLED)
        except Exception as error:
            if not isinstance(error, DualPathError):
                _log.exception("%s failed", job.request.request_id)
            job.end(Phase.FAILED, error)

    # -- what happened ------------------------------------------------------------------------------------------------

    def record(self, request_id: RequestId) -> RequestRecord | None:
        return self._records.get(request_id)

    def recent(self, limit: int) -> list[RequestRecord]:
        """Of this gateway, newest first, running requests included."""
        return self._records.find(RecordQuery(limit), self.control.may_see)

    def on_finished(self, callback: Callable[[RequestRecord], None]) -> None:
        """``callback`` is called on the event loop whenever a request is finished, cancelled or failed."""
        self._records.listen(callback)

    async def stats(self) -> ClusterStats:
        """Lost engines are left out; one that does not answer now is taken for lost."""
        desk = await self._desk.stats()
        stats = ClusterStats(
            desk.engines,
            index_blocks=desk.num_index_blocks,
            nodes=self._describe_nodes(),
            store=desk.store,
            epoch=desk.epoch,
            block_tokens=self._namespace.geometry.block_tokens,
            block_bytes=self._namespace.geometry.full_block_bytes,
            facts=self._facts,
            inter_token_latency=self._token_gaps.snapshot(),
            is_paused=self.control.is_paused,
        )
        return stats.with_requests(self._records.phases())

"""The cluster as the gateway sees it: requests in, tokens out, records and statistics; nothing left on close.

Composition of this package's parts. A request's task (dualpath.scheduler.coordinator) belongs to the service, not to
the client's stream: the last token is the client's at once, while writes and releases go on. Event loop only.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

from dualpath.core.errors import DualPathError, InvalidRequestError, OverloadedError
from dualpath.core.ids import EngineId, RequestId
from dualpath.core.keys import Namespace, root_key
from dualpath.core.phase import Phase
from dualpath.core.request import Request, RequestRecord, TokenEvent
from dualpath.core.runtime import Runtime, SystemRuntime
from dualpath.core.stats import ClusterStats, EngineStats, NodeStats
from dualpath.engine.api import DecodeEngineClient, PrefillEngineClient
from dualpath.scheduler.accounts import Accounts
from dualpath.scheduler.attempt import Attempt, Steps
from dualpath.scheduler.blocks import Hits, IndexView, KeyChain
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.coordinator import Coordinator
from dualpath.scheduler.evictor import Evictor
from dualpath.scheduler.health import Health
from dualpath.scheduler.holding import Releaser
from dualpath.scheduler.job import Job, first_id, new_job
from dualpath.scheduler.peering import Peering
from dualpath.scheduler.placer import Placer
from dualpath.scheduler.records import RecordBook
from dualpath.scheduler.tasks import TaskSet
from dualpath.scheduler.waiting import too_long
from dualpath.store.contract import BlockStore

_log = logging.getLogger(__name__)

_CLOSE_GRACE_S = 30.0  # for releases, after the last request has ended or was cancelled


class Service:
    """Built inside the serving event loop, from engines that are ready; ``start`` makes them known to each other."""

    def __init__(
        self,
        *,
        prefill_engines: Sequence[PrefillEngineClient],
        decode_engines: Sequence[DecodeEngineClient],
        index: IndexView,
        store: BlockStore,
        namespace: Namespace,
        model_name: str,
        max_context_tokens: int,
        config: SchedulerConfig | None = None,
        runtime: Runtime | None = None,
        describe_nodes: Callable[[], tuple[NodeStats, ...]] = tuple,
    ) -> None:
        self.model_name = model_name
        self.config = config = config or SchedulerConfig()
        self._runtime = runtime = runtime or SystemRuntime()
        self._describe_nodes = describe_nodes
        self._namespace = namespace
        self._index = index
        self._prefill = {engine.info.engine_id: engine for engine in prefill_engines}
        self._decode = {engine.info.engine_id: engine for engine in decode_engines}
        infos = [engine.info for engine in self._decode.values()]
        self.max_context_tokens = min(max_context_tokens, max((info.device_kv_tokens for info in infos), default=0))
        self.accounts = Accounts([*infos, *(engine.info for engine in self._prefill.values())])
        self._tasks = TaskSet()
        self._health = Health({**self._prefill, **self._decode}, config, runtime, self._tasks, self)
        self._peering = Peering(
            self._prefill,
            self._decode,
            config,
            runtime,
            self._tasks,
            self._health.is_lost,
            lambda: self._placer.reconsider(),
        )
        prefill_infos = [engine.info for engine in self._prefill.values()]
        self._placer = Placer(prefill_infos, infos, self.accounts, config, self._peering.is_connected)
        self._releaser = Releaser(self.accounts, config, runtime, self._tasks, self._placer.wake)
        self._evictor = Evictor(
            index, store, config.capacity_bytes, runtime, capacity_fraction=config.capacity_fraction
        )
        steps = Steps(
            placer=self._placer,
            accounts=self.accounts,
            hits=Hits(index, namespace.geometry.block_tokens, config.durable_timeout_s),
            namespace=namespace,
            config=config,
            health=self._health,
            on_stored=self._evictor.wake,
        )
        self._coordinator = Coordinator(
            self._prefill, self._decode, steps, self._releaser, self._health, self._peering, runtime
        )
        self._records = RecordBook(config.max_finished_records)
        self._sequence = itertools.count()
        self._running: dict[Job, asyncio.Task[None]] = {}
        self._is_open = False

    # -- life cycle ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Introduce every prefill engine to every decode engine, then accept requests."""
        await self._peering.start()
        self._tasks.spawn(self._evictor.run(), is_patrol=True)
        self._health.watch()
        self._evictor.wake()
        self._is_open = True

    def adopt(self, held: Iterable[tuple[EngineId, RequestId]]) -> None:
        """Release what requests of a former scheduler hold, prefill side first, as in their own time."""
        holders: dict[RequestId, list[EngineId]] = {}
        for engine_id, request_id in held:
            holders.setdefault(request_id, []).append(engine_id)
        for request_id, engine_ids in holders.items():
            prefill = next((self._prefill[e] for e in engine_ids if e in self._prefill), None)
            decode = next((self._decode[e] for e in engine_ids if e in self._decode), None)
            self._releaser.hold(first_id(request_id), request_id, prefill, decode).drop()

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
        return self._is_open and self._placer.has_engines

    def problems(self) -> tuple[str, ...]:
        """What an operator should know although requests are served. Without names: anybody may ask."""
        engine_ids = (*self._prefill, *self._decode)
        lost = sum(map(self._health.is_lost, engine_ids))
        apart = self._peering.num_apart
        stalled = self._health.num_stalled_nodes
        found = (
            (lost, f"{lost} of {len(engine_ids)} engines do not answer"),
            (apart, f"{apart} pairs of living engines are not connected"),
            (stalled, f"the storage of {stalled} nodes does not answer"),
            (not self._evictor.stats.accepts_writes, "the store takes no new blocks"),
        )
        return tuple(text for count, text in found if count)

    def mark_lost(self, engine_id: EngineId, reason: DualPathError | None = None) -> None:
        """Whoever knows that an engine has gone says so here; it is used again once it answers."""
        self._health.mark_lost(engine_id, reason or DualPathError("reported lost"))

    def mark_back(self, engine_id: EngineId) -> None:
        self._health.mark_back(engine_id)

    # -- what health tells --------------------------------------------------------------------------------------------

    def engine_lost(self, engine_id: EngineId) -> None:
        self._placer.mark_lost(engine_id)
        self._peering.engine_lost(engine_id)
        self._coordinator.engine_lost(engine_id)

    def engine_gone(self, engine_id: EngineId) -> None:
        self._peering.engine_gone(engine_id)

    def engine_back(self, engine_id: EngineId) -> None:
        self._peering.engine_back(engine_id)
        self._placer.mark_back(engine_id)

    def engine_asked(self, engine_id: EngineId) -> Callable[[EngineStats], None]:
        return self._peering.engine_asked(engine_id)

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
        if self._records.is_running(request.request_id) or self._releaser.is_held(request.request_id):
            raise InvalidRequestError(f"request id {request.request_id} is in use", param="request_id")
        if num_prompt > self._placer.max_prompt_tokens:
            raise too_long(num_prompt, self._placer.max_prompt_tokens)
        if num_prompt + request.sampling.max_tokens > self.max_context_tokens:
            raise too_long(num_prompt + request.sampling.max_tokens, self.max_context_tokens)
        if self._placer.num_waiting >= self.config.max_queued_requests:
            raise OverloadedError("too many requests are waiting", retry_after_s=self.config.retry_after_s)

    async def _stream(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        self._admit(request)
        chain = KeyChain(
            root_key(self._namespace, request.cache_salt),
            request.prompt_token_ids,
            self._namespace.geometry.block_tokens,
        )
        job = new_job(request, next(self._sequence), chain, self._runtime, self._records.end, self.config)
        self._records.add(job)
        task = self._tasks.spawn(self._serve(job))
        self._running[job] = task
        task.add_done_callback(lambda _: self._running.pop(job))
        try:
            while True:
                event = await job.events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            if not job.is_over:
                self._cancel(job)

    def _cancel(self, job: Job, error: Exception | None = None) -> None:
        """What has been computed is still persisted: who stops reading may well come back with a next turn."""
        job.end(Phase.CANCELLED, error)
        attempt = self._coordinator.decoding(job)
        if attempt is None:
            self._running[job].cancel()
        else:
            self._tasks.spawn(self._stop_decoding(job, attempt))

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
        """Newest first, running requests included."""
        return self._records.recent(limit)

    def on_finished(self, callback: Callable[[RequestRecord], None]) -> None:
        """``callback`` is called on the event loop whenever a request is finished, cancelled or failed."""
        self._records.listen(callback)

    async def stats(self) -> ClusterStats:
        """Lost engines are left out; one that does not answer now is taken for lost."""
        there = [engine_id for engine_id in (*self._prefill, *self._decode) if not self._health.is_lost(engine_id)]
        answers = await asyncio.gather(*map(self._health.stats, there))
        queued, running = self._records.count()
        engines = tuple(stats for stats in answers if stats is not None)
        return ClusterStats(
            engines, queued, running, self._index.num_blocks(), self._describe_nodes(), self._evictor.stats
        )

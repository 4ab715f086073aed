"""The life of a request, driven by one task: attempts until one comes to the end.

When an attempt fails for a reason that another may not share (engine lost, preempted, path broken, a deadline passed),
the request goes back to the queue with the tokens already sent behind its prompt, and the client's stream goes on after
them without a gap or a repeat. How often and how soon: ``dualpath.scheduler.retry_policy``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from dualpath.core.errors import (
    EngineLostError,
    EngineSilentError,
    OtherWeightsError,
    PathBrokenError,
    PreemptedError,
    RequeuedError,
)
from dualpath.core.ids import EngineId
from dualpath.core.phase import Phase
from dualpath.core.runtime import Runtime
from dualpath.protocol.api import DecodeEngineClient, PrefillEngineClient
from dualpath.scheduler.attempt import Attempt, Steps
from dualpath.scheduler.demand import Demand
from dualpath.scheduler.desk.api import DeskClient
from dualpath.scheduler.engine_call import EngineFailure
from dualpath.scheduler.gate import Gate
from dualpath.scheduler.holding import Releaser
from dualpath.scheduler.job import Job
from dualpath.scheduler.retry_policy import is_between_engines

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Coordinator:
    """What the requests' tasks share. Event loop only."""

    prefill_engines: Mapping[EngineId, PrefillEngineClient]
    decode_engines: Mapping[EngineId, DecodeEngineClient]
    steps: Steps
    releaser: Releaser
    desk: DeskClient
    runtime: Runtime
    gate: Gate
    attempts: dict[Attempt, None] = field(default_factory=dict)

    async def serve(self, job: Job) -> None:
        """Run attempts until the request is over. Raises what ended it otherwise."""
        while True:
            attempt = await self._place(job)
            try:
                await self._run(attempt)
                return
            except EngineFailure as failure:
                if job.is_over:
                    return  # the client has its tokens; only writes were lost
                self._take_failure(attempt, failure)
                failed_on, cause = failure.engine_id, failure.cause
            job.enter(Phase.QUEUED)
            job.record.num_retries += 1
            if isinstance(cause, OtherWeightsError):
                await self.runtime.sleep_s(self.steps.config.pause_s)
                await self.desk.check_weights(attempt.engine_ids)
            if isinstance(cause, RequeuedError):
                await self._until_opened(job)
                continue
            await self.desk.check(attempt.engine_ids)
            await self.runtime.sleep_s(job.retries.pause_s())
            if job.retries.is_suspect:
                await self._until_known(attempt, failed_on)

    async def _until_opened(self, job: Job) -> None:
        started_s = self.runtime.now_s()
        await self.gate.opened()
        job.retries.waited(self.runtime.now_s() - started_s)

    async def _until_known(self, attempt: Attempt, engine_id: EngineId) -> None:
        """A suspect is placed again when the fate of the engine that was lost with it is known."""
        started_s = self.runtime.now_s()
        peer_id = attempt.prefill_peer if engine_id == attempt.prefill.info.engine_id else attempt.decode_peer
        has_died = await self.desk.fate(engine_id, peer_id)
        attempt.job.retries.waited(self.runtime.now_s() - started_s)
        if has_died:
            attempt.job.retries.engine_died()

    def _take_failure(self, attempt: Attempt, failure: EngineFailure) -> None:
        """Learn from it; raises its cause where it was the last."""
        job, cause = attempt.job, failure.cause
        if isinstance(cause, RequeuedError):
            return
        prefill_id, decode_id = attempt.prefill.info.engine_id, attempt.decode.info.engine_id
        # As text: a handler that keeps the error keeps its frames, and with them the prompt.
        _log.warning("%s: attempt %d ended by %s", job.request.request_id, job.record.num_retries + 1, str(failure))
        if isinstance(cause, PathBrokenError):
            self.desk.path_broken(attempt.request.request_id)
        if isinstance(cause, PreemptedError):
            job.num_preemptions += 1
        else:
            job.failed_on = (prefill_id, decode_id) if is_between_engines(cause) else (failure.engine_id,)
        if job.request.is_opaque and job.generated:
            raise cause from failure  # nobody else can go on with an answer that has begun
        if not job.retries.failed(cause):
            if job.retries.is_suspect:
                text = f"given up after {job.retries.num_losses} engines were lost in a row while they had it"
                raise EngineLostError(f"{text}: {cause}") from failure
            raise cause from failure
        job.recomputes |= job.retries.recomputes

    async def _run(self, attempt: Attempt) -> None:
        self.attempts[attempt] = None
        try:
            if not self.gate.is_open:
                raise _requeued(attempt)
            await self.steps.run(attempt)
        except asyncio.CancelledError:
            if attempt.lost is None:
                raise
            attempt.task.uncancel()
            raise attempt.lost from None
        finally:
            del self.attempts[attempt]
            attempt.hold.drop()  # 7

    def decoding(self, job: Job) -> Attempt | None:
        """The job's attempt, if it is being decoded now."""
        return next((a for a in self.attempts if a.job is job and a.is_decoding), None)

    def engine_lost(self, engine_id: EngineId) -> None:
        """Nobody waits for an engine's answer once the engine is known to be lost."""
        for attempt in self.attempts:
            if engine_id in attempt.engine_ids and attempt.lost is None:
                attempt.lost = EngineFailure(engine_id, EngineSilentError(f"{engine_id} is lost"))
                attempt.task.cancel()

    def requeue(self, *, is_all: bool) -> None:
        """Requests leave their engines and wait again: those without a first token from them, or all.

        An opaque one whose answer has begun stays: nobody else can go on with it.
        """
        for attempt in self.attempts:
            has_begun = attempt.request.is_opaque and bool(attempt.job.generated)
            leaves = attempt.needs_prefill or (is_all and not has_begun)
            if leaves and not attempt.job.is_over and attempt.lost is None:
                attempt.lost = _requeued(attempt)
                attempt.task.cancel()

    async def _place(self, job: Job) -> Attempt:
        config, geometry = self.steps.config, self.steps.namespace.geometry
        request = job.attempt_request()
        num_prompt = len(request.prompt_token_ids)
        # A request that was preempted was so for want of device memory: set aside more each time.
        expected = min(request.sampling.max_tokens, config.expected_output_tokens << job.num_preemptions)
        num_tokens = geometry.blocks_for(num_prompt + expected) * geometry.block_tokens
        demand = Demand(request.request_id, job.sequence, num_prompt, num_tokens, job.failed_on)
        asked_at_s = self.runtime.now_s()
        placement = await self.desk.place(demand)
        job.retries.waited(self.runtime.now_s() - asked_at_s)
        job.record.prefill_engine, job.record.decode_engine = placement.prefill, placement.decode
        job.sequence = placement.sequence
        prefill, decode = self.prefill_engines[placement.prefill], self.decode_engines[placement.decode]
        epoch = placement.epoch or self.desk.epoch
        self.steps.name_blocks(job, epoch)
        peers = placement.prefill_peer, placement.decode_peer
        task = asyncio.current_task()
        assert task is not None
        return Attempt(
            job,
            request,
            prefill,
            decode,
            self.releaser.hold(job.request.request_id, request.request_id, prefill, decode, peers),
            task,
            *peers,
            epoch.weights.version,
            epoch.root(self.steps.namespace, request.cache_salt),
            epoch.namespace(self.steps.namespace).digest,
            placement.num_decode_tokens,
        )


def _requeued(attempt: Attempt) -> EngineFailure:
    return EngineFailure(attempt.prefill.info.engine_id, RequeuedError("the service is paused"))

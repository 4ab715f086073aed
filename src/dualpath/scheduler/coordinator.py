"""The life of a request, driven by one task: attempts until one comes to the end.

When an attempt fails for a reason that another may not share (engine lost, preempted, path broken, a deadline passed),
the request goes back to the queue with the tokens already sent behind its prompt, and the client's stream goes on after
them without a gap or a repeat. How often and how soon: ``dualpath.scheduler.patience``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from dualpath.core.errors import EngineSilentError, PathBrokenError, PreemptedError
from dualpath.core.ids import EngineId
from dualpath.core.phase import Phase
from dualpath.core.runtime import Runtime
from dualpath.engine.api import DecodeEngineClient, PrefillEngineClient
from dualpath.scheduler.attempt import Attempt, Steps
from dualpath.scheduler.blocks import WriteLedger
from dualpath.scheduler.engine_call import EngineFailure
from dualpath.scheduler.health import Health
from dualpath.scheduler.holding import Releaser
from dualpath.scheduler.job import Job
from dualpath.scheduler.patience import is_between_engines
from dualpath.scheduler.peering import Peering
from dualpath.scheduler.waiting import Demand

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Coordinator:
    """What the requests' tasks share. Event loop only."""

    prefill_engines: Mapping[EngineId, PrefillEngineClient]
    decode_engines: Mapping[EngineId, DecodeEngineClient]
    steps: Steps
    releaser: Releaser
    health: Health
    peering: Peering
    runtime: Runtime
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
            job.enter(Phase.QUEUED)
            job.record.num_retries += 1
            await asyncio.gather(*(self.health.check(engine_id) for engine_id in attempt.engine_ids))
            await self.runtime.sleep_s(job.patience.pause_s())

    def _take_failure(self, attempt: Attempt, failure: EngineFailure) -> None:
        """Learn from it; raises its cause where it was the last."""
        job, cause = attempt.job, failure.cause
        prefill_id, decode_id = attempt.prefill.info.engine_id, attempt.decode.info.engine_id
        # As text: a handler that keeps the error keeps its frames, and with them the prompt.
        _log.warning("%s: attempt %d ended by %s", job.request.request_id, job.record.num_retries + 1, str(failure))
        if isinstance(cause, PathBrokenError):
            self.peering.path_broken(prefill_id, decode_id, attempt.connection)
        if isinstance(cause, PreemptedError):
            job.num_preemptions += 1
        else:
            job.failed_on = (prefill_id, decode_id) if is_between_engines(cause) else (failure.engine_id,)
        if not job.patience.failed(cause):
            raise cause from failure
        job.recomputes |= job.patience.recomputes

    async def _run(self, attempt: Attempt) -> None:
        self.attempts[attempt] = None
        try:
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

    async def _place(self, job: Job) -> Attempt:
        config, geometry = self.steps.config, self.steps.namespace.geometry
        request = job.attempt_request()
        num_prompt = len(request.prompt_token_ids)
        # A request that was preempted was so for want of device memory: set aside more each time.
        expected = min(request.sampling.max_tokens, config.expected_output_tokens << job.num_preemptions)
        num_tokens = geometry.blocks_for(num_prompt + expected) * geometry.block_tokens
        demand = Demand(request.request_id, job.sequence, num_prompt, num_tokens, job.failed_on)
        asked_at_s = self.runtime.now_s()
        placement = await self.steps.placer.place(demand)
        job.patience.waited(self.runtime.now_s() - asked_at_s)
        job.record.prefill_engine, job.record.decode_engine = placement.prefill, placement.decode
        prefill, decode = self.prefill_engines[placement.prefill], self.decode_engines[placement.decode]
        task = asyncio.current_task()
        assert task is not None
        return Attempt(
            job,
            request,
            prefill,
            decode,
            self.releaser.hold(job.request.request_id, request.request_id, prefill, decode),
            task,
            prefill.info.peer_id,
            decode.info.peer_id,
            self.peering.connection(placement.prefill, placement.decode),
            WriteLedger(self.steps.hits.index, job.chain),
        )

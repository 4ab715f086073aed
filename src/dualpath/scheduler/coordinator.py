"""The life of a request, as numbered in dualpath.engine.api, driven by one task: attempts until one comes to the end.

An attempt is a pair of engines, from reservation to the last token. When it fails for a reason that another pair may
not share (engine lost, preempted, a deadline passed), the request goes back to the queue with the tokens already sent
behind its prompt, and the client's stream goes on after them without a gap or a repeat.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dualpath.core.errors import EngineLostError, PreemptedError
from dualpath.core.ids import BlockKey, EngineId
from dualpath.core.keys import Namespace
from dualpath.core.phase import Phase
from dualpath.core.plan import ReadPlan
from dualpath.core.request import Request, TokenEvent
from dualpath.engine.api import (
    DecodeEngineClient,
    DecodeOrder,
    DecodeStep,
    PrefillEngineClient,
    PrefillOrder,
)
from dualpath.scheduler.accounts import Accounts
from dualpath.scheduler.blocks import Hits, WriteLedger
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.engine_call import EngineFailure, EngineStream, ask
from dualpath.scheduler.holding import Hold, Releaser
from dualpath.scheduler.job import Job
from dualpath.scheduler.path_choice import PathQuestion, path_policy
from dualpath.scheduler.placer import Demand, Placer
from dualpath.scheduler.reading import HitRead, HitReader

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Attempt:
    """A request on its pair of engines."""

    job: Job
    request: Request  # as this attempt's engines know it
    prefill: PrefillEngineClient
    decode: DecodeEngineClient
    hold: Hold
    task: asyncio.Task[None]
    decode_slots: tuple[int, ...] = ()
    lost: EngineFailure | None = None  # why it was cancelled from outside
    needs_prefill: bool = True
    is_decoding: bool = False
    ledger: WriteLedger = field(init=False)

    @property
    def engine_ids(self) -> tuple[EngineId, ...]:
        decode_id = self.decode.info.engine_id
        return (self.prefill.info.engine_id, decode_id) if self.needs_prefill else (decode_id,)


@dataclass(slots=True, eq=False)
class Coordinator:
    """What the requests' tasks share. Event loop only."""

    prefill_engines: Mapping[EngineId, PrefillEngineClient]
    decode_engines: Mapping[EngineId, DecodeEngineClient]
    placer: Placer
    accounts: Accounts
    hits: Hits
    releaser: Releaser
    namespace: Namespace
    config: SchedulerConfig
    check_engine: Callable[[EngineId], Awaitable[object]]  # asks an engine whether it is there
    on_stored: Callable[[], None]  # blocks were published: the store may have grown too large
    num_planned: int = 0
    attempts: set[Attempt] = field(default_factory=set)

    async def serve(self, job: Job) -> None:
        """Run attempts until the request is over. Raises what ended it otherwise."""
        while True:
            job.enter(Phase.QUEUED)
            attempt = await self._place(job)
            try:
                await self._run(attempt)
                return
            except EngineFailure as failure:
                if job.is_over:
                    return  # the client has its tokens; only writes were lost
                if not isinstance(failure.cause, PreemptedError):
                    job.num_failures += 1
                    job.failed_on = failure.engine_id
                if job.num_failures > self.config.max_retries:
                    raise failure.cause from failure
                _log.warning("%s: attempt %d ended by %s", job.request.request_id, job.record.num_retries + 1, failure)
                job.record.num_retries += 1
                await asyncio.gather(*(self.check_engine(engine_id) for engine_id in attempt.engine_ids))

    async def _run(self, attempt: Attempt) -> None:
        """One attempt: the numbers are those of dualpath.engine.api."""
        job = attempt.job
        self.attempts.add(attempt)
        try:
            job.enter(Phase.PLACED)
            hit = await self._load_hit(attempt)  # 1 to 4
            job.enter(Phase.READY)
            first = await self._prefill(attempt, hit)  # 5
            attempt.hold.drop_prefill()
            attempt.needs_prefill = False
            await self._decode(attempt, hit, first)  # 6
        except asyncio.CancelledError:
            if attempt.lost is None:
                raise
            attempt.task.uncancel()
            raise attempt.lost from None
        finally:
            self.attempts.discard(attempt)
            attempt.hold.drop()  # 7

    def decoding(self, job: Job) -> Attempt | None:
        """The job's attempt, if it is being decoded now."""
        return next((a for a in self.attempts if a.job is job and a.is_decoding), None)

    def engine_lost(self, engine_id: EngineId) -> None:
        """Nobody waits for an engine's answer once the engine is known to be gone."""
        for attempt in list(self.attempts):
            if engine_id in attempt.engine_ids and attempt.lost is None:
                attempt.lost = EngineFailure(engine_id, EngineLostError(f"{engine_id} is gone"))
                attempt.task.cancel()

    async def _place(self, job: Job) -> Attempt:
        request = job.attempt_request()
        num_prompt = len(request.prompt_token_ids)
        # A request that was resumed may have been preempted for want of device memory: set aside more each time.
        expected = min(request.sampling.max_tokens, self.config.expected_output_tokens << job.record.num_retries)
        num_tokens = self.namespace.geometry.blocks_for(num_prompt + expected) * self.namespace.geometry.block_tokens
        demand = Demand(request.request_id, job.sequence, num_prompt, num_tokens, job.failed_on)
        placement = await self.placer.place(demand)
        job.record.prefill_engine, job.record.decode_engine = placement.prefill, placement.decode
        prefill, decode = self.prefill_engines[placement.prefill], self.decode_engines[placement.decode]
        task = asyncio.current_task()
        assert task is not None
        attempt = Attempt(job, request, prefill, decode, self.releaser.hold(request.request_id, prefill, decode), task)
        attempt.ledger = WriteLedger(self.hits.index, job.chain)
        return attempt

    # -- 1 to 4: the stored part of the prompt ------------------------------------------------------------------------

    async def _load_hit(self, attempt: Attempt) -> HitRead:
        candidates = self._candidates(attempt)
        with self.hits.pinned(candidates):
            keys = await self.hits.durable(candidates)
            await self._reserve_decode(attempt)
            reader = self._plan_reading(attempt, keys)
            try:
                return await self._read(attempt, keys, reader)
            finally:
                reader.close()

    def _candidates(self, attempt: Attempt) -> tuple[BlockKey, ...]:
        """Blocks to read; none where that has just come to nothing."""
        job = attempt.job
        candidates = self.hits.candidates(job.chain, len(attempt.request.prompt_token_ids))
        if not job.recomputes:
            return candidates
        job.recomputes = False
        job.record.num_recomputed_blocks += len(candidates)
        return ()

    async def _reserve_decode(self, attempt: Attempt) -> None:
        engine, request = attempt.decode, attempt.request
        num_slots = self.namespace.geometry.blocks_for(len(request.prompt_token_ids))
        reserve = engine.reserve(request.request_id, num_slots)
        attempt.decode_slots = await ask(engine.info.engine_id, reserve, self.config.reserve_timeout_s)

    def _plan_reading(self, attempt: Attempt, keys: Sequence[BlockKey]) -> HitReader:
        """Choose the path as late as possible, and count the shares as queued from this moment on."""
        prefill_node, decode_node = attempt.prefill.info.node_id, attempt.decode.info.node_id
        question = PathQuestion(
            num_hit_blocks=len(keys),
            block_tokens=self.namespace.geometry.block_tokens,
            prefill_queue_tokens=self.accounts.read_queue_tokens(prefill_node),
            decode_queue_tokens=self.accounts.read_queue_tokens(decode_node),
            prefill_rate=self.config.nic_rate(prefill_node),
            decode_rate=self.config.nic_rate(decode_node),
            sequence=self.num_planned,
        )
        plan: ReadPlan = path_policy(self.config.path_policy)(question)
        self.num_planned += 1 if keys else 0
        if not attempt.job.generated:  # a resumed request's record keeps telling of its prompt
            attempt.job.record.path = plan.path
        return HitReader(
            attempt.request.request_id,
            keys,
            plan,
            attempt.prefill,
            attempt.decode,
            self.accounts,
            self.namespace.geometry.block_tokens,
            self.config.read_timeout_s,
        )

    async def _read(self, attempt: Attempt, keys: Sequence[BlockKey], reader: HitReader) -> HitRead:
        job, engine = attempt.job, attempt.prefill
        if reader.num_prefill_blocks:
            num_blocks = len(attempt.decode_slots)  # of the whole prompt
            reserve = engine.reserve(attempt.request.request_id, reader.num_prefill_blocks, num_blocks)
            await ask(engine.info.engine_id, reserve, self.config.reserve_timeout_s)
        job.enter(Phase.READING)
        try:
            hit = await reader.read()
        except EngineFailure as failure:
            job.recomputes = not isinstance(failure.cause, EngineLostError)
            raise
        finally:
            for role, num_bytes in reader.num_bytes.items():
                job.record.storage_read_bytes[role.value] += num_bytes
            self.placer.wake()  # reading queues are shorter now
        attempt.decode_slots = tuple(hit.moved_slots.get(i, slot) for i, slot in enumerate(attempt.decode_slots))
        for index in sorted(hit.gone, reverse=True):  # leaves first
            self.hits.index.forget(keys[index])
        if not job.generated:
            job.record.num_hit_tokens = hit.num_hit_blocks * self.namespace.geometry.block_tokens
        job.record.num_recomputed_blocks += len(keys) - hit.num_hit_blocks
        return hit

    # -- 5: the rest of the prompt ------------------------------------------------------------------------------------

    async def _prefill(self, attempt: Attempt, hit: HitRead) -> TokenEvent:
        job, engine = attempt.job, attempt.prefill
        order = PrefillOrder(
            request=attempt.request,
            num_hit_tokens=hit.num_hit_blocks * self.namespace.geometry.block_tokens,
            prefill_blocks=hit.prefill_blocks,
            decode_engine=attempt.decode.info.engine_id,
            decode_slots=attempt.decode_slots,
        )
        first: TokenEvent | None = None
        stream = EngineStream(engine.info.engine_id, engine.prefill(order), self.config.prefill_timeout_s)
        async with stream:
            async for event in stream:
                job.enter(Phase.PREFILLING)
                if event is not None:
                    first = event
                    job.enter(Phase.HANDED_OVER)
                    if event.finish_reason is None:
                        job.chain.append(event.token_id)
                        job.emit(event)  # else when the prompt's writes are known: the next turn must find them
        if first is None:
            raise EngineFailure(engine.info.engine_id, EngineLostError("prefill ended without a token"))
        return first

    # -- 6: the tokens after the first --------------------------------------------------------------------------------

    async def _decode(self, attempt: Attempt, hit: HitRead, first: TokenEvent) -> None:
        job, engine = attempt.job, attempt.decode
        num_prompt_blocks = self.namespace.geometry.full_blocks_in(len(attempt.request.prompt_token_ids))
        order = DecodeOrder(
            request=attempt.request,
            num_hit_tokens=hit.num_hit_blocks * self.namespace.geometry.block_tokens,
            first_token=first,
            keys=tuple(job.chain.keys[:num_prompt_blocks]),
        )
        is_whole = first.finish_reason is not None
        if is_whole:
            job.chain.append(first.token_id)
        stream = EngineStream(engine.info.engine_id, engine.decode(order), self.config.decode_timeout_s)
        try:
            async with stream:
                attempt.is_decoding = True
                async for step in stream:
                    self._take(attempt, step)
                    if is_whole:
                        job.emit(first)
        finally:
            attempt.is_decoding = False
            attempt.ledger.close()
            if is_whole:
                job.emit(first)  # whatever has become of the writes
        if not job.is_over:
            raise EngineFailure(engine.info.engine_id, EngineLostError("decoding ended without a finish reason"))

    def _take(self, attempt: Attempt, step: DecodeStep) -> None:
        """Writes are known to the index before the tokens are to the client: its next turn finds them."""
        job, ledger = attempt.job, attempt.ledger
        if step.admitted or step.tokens:
            job.enter(Phase.DECODING)
        for event in step.tokens:
            job.chain.append(event.token_id)
        ledger.writing(step.writing)
        ledger.durable(step.durable)
        ledger.failed(step.not_persisted)
        if step.durable:
            self.on_stored()
        for event in step.tokens:
            job.emit(event)
        used = len(job.request.prompt_token_ids) + len(job.generated)
        self.accounts.grow(attempt.request.request_id, attempt.decode.info.engine_id, used)

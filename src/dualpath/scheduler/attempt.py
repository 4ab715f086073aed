"""One attempt of a request on a pair of engines, from reservation to the last token: steps 1 to 6 of engine.api."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dualpath.core.errors import EngineGoneError, EngineLostError
from dualpath.core.ids import BlockKey, EngineId, PeerId
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
from dualpath.scheduler.health import Health
from dualpath.scheduler.holding import Hold
from dualpath.scheduler.job import Job
from dualpath.scheduler.path_choice import PathQuestion, path_policy
from dualpath.scheduler.placer import Placer
from dualpath.scheduler.reading import HitRead, HitReader, is_lost


@dataclass(slots=True, eq=False)
class Attempt:
    """A request on its pair of engines."""

    job: Job
    request: Request  # as this attempt's engines know it
    prefill: PrefillEngineClient
    decode: DecodeEngineClient
    hold: Hold
    task: asyncio.Task[None]
    prefill_peer: PeerId  # the incarnations that this attempt is about
    decode_peer: PeerId
    connection: int  # of the two, as it was placed: dualpath.scheduler.peering
    ledger: WriteLedger
    decode_slots: tuple[int, ...] = ()
    lost: EngineFailure | None = None  # why it was cancelled from outside
    needs_prefill: bool = True
    is_decoding: bool = False

    @property
    def engine_ids(self) -> tuple[EngineId, ...]:
        decode_id = self.decode.info.engine_id
        return (self.prefill.info.engine_id, decode_id) if self.needs_prefill else (decode_id,)

    def check(self) -> None:
        """Whoever is asked next must be the incarnation that this attempt is about: its hold knows no other."""
        for engine, peer in ((self.prefill, self.prefill_peer), (self.decode, self.decode_peer)):
            if engine.info.engine_id in self.engine_ids and engine.info.peer_id != peer:
                raise EngineFailure(engine.info.engine_id, EngineGoneError(f"{peer} has a successor"))


@dataclass(slots=True, eq=False)
class Steps:
    """What all attempts share. Event loop only."""

    placer: Placer
    accounts: Accounts
    hits: Hits
    namespace: Namespace
    config: SchedulerConfig
    health: Health
    on_stored: Callable[[], None]  # blocks were published, or could not be written: the store may be too large, or full
    num_planned: int = 0

    async def run(self, attempt: Attempt) -> None:
        """The numbers are those of dualpath.engine.api. Raises EngineFailure where another attempt may succeed."""
        job = attempt.job
        job.enter(Phase.PLACED)
        hit = await self._load_hit(attempt)  # 1 to 4
        job.enter(Phase.READY)
        first = await self._prefill(attempt, hit)  # 5
        attempt.hold.drop_prefill()
        attempt.needs_prefill = False
        await self._decode(attempt, hit, first)  # 6

    def _keys(self, attempt: Attempt) -> tuple[BlockKey, ...]:
        """Of the prompt's Full Blocks."""
        num_blocks = self.namespace.geometry.full_blocks_in(len(attempt.request.prompt_token_ids))
        return tuple(attempt.job.chain.keys[:num_blocks])

    # -- 1 to 4: the stored part of the prompt ------------------------------------------------------------------------

    async def _load_hit(self, attempt: Attempt) -> HitRead:
        candidates = self._candidates(attempt)
        with self.hits.pinned(candidates):
            keys = await self.hits.durable(candidates)
            await self._reserve_decode(attempt)
            reader = self._plan_reading(attempt, keys)
            try:
                return await self._read(attempt, reader, len(keys))
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
        attempt.check()
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
            prefill_is_stalled=self.health.is_stalled(prefill_node),
            decode_is_stalled=self.health.is_stalled(decode_node),
        )
        plan: ReadPlan = path_policy(self.config.path_policy)(question)
        self.num_planned += 1 if keys else 0
        if not attempt.job.generated:  # a resumed request's record keeps telling of its prompt
            attempt.job.record.path = plan.path
        return HitReader(
            attempt.request.request_id,
            keys[: plan.num_hit_blocks],
            plan,
            attempt.prefill,
            attempt.decode,
            self.accounts,
            self.namespace.geometry.block_tokens,
            self.config.read_timeout_s,
            attempt.check,
        )

    async def _read(self, attempt: Attempt, reader: HitReader, num_stored: int) -> HitRead:
        job, engine = attempt.job, attempt.prefill
        attempt.check()
        if reader.num_prefill_blocks:
            num_blocks = len(attempt.decode_slots)  # of the whole prompt
            reserve = engine.reserve(attempt.request.request_id, reader.num_prefill_blocks, num_blocks)
            await ask(engine.info.engine_id, reserve, self.config.reserve_timeout_s)
        job.enter(Phase.READING)
        try:
            hit = await reader.read()
        except EngineFailure as failure:
            job.recomputes = not is_lost(failure.cause)
            raise
        finally:
            for role, num_bytes in reader.num_bytes.items():
                job.record.storage_read_bytes[role.value] += num_bytes
            self.placer.wake()  # reading queues are shorter now
        attempt.decode_slots = tuple(hit.moved_slots.get(i, slot) for i, slot in enumerate(attempt.decode_slots))
        for index in sorted(hit.gone, reverse=True):  # leaves first
            self.hits.index.forget(reader.keys[index])
        if not job.generated:
            job.record.num_hit_tokens = hit.num_hit_blocks * self.namespace.geometry.block_tokens
        job.record.num_recomputed_blocks += num_stored - hit.num_hit_blocks
        return hit

    # -- 5: the rest of the prompt ------------------------------------------------------------------------------------

    async def _prefill(self, attempt: Attempt, hit: HitRead) -> TokenEvent:
        attempt.check()
        job, engine = attempt.job, attempt.prefill
        order = PrefillOrder(
            request=attempt.request,
            num_hit_tokens=hit.num_hit_blocks * self.namespace.geometry.block_tokens,
            prefill_blocks=hit.prefill_blocks,
            decode_peer=attempt.decode_peer,
            decode_slots=attempt.decode_slots,
            keys=self._keys(attempt),
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
        attempt.check()
        order = DecodeOrder(
            request=attempt.request,
            num_hit_tokens=hit.num_hit_blocks * self.namespace.geometry.block_tokens,
            first_token=first,
            keys=self._keys(attempt),
        )
        is_whole = first.finish_reason is not None
        if is_whole:
            job.chain.append(first.token_id)
        stream = EngineStream(engine.info.engine_id, engine.decode(order), self.config.decode_timeout_s)
        try:
            attempt.ledger.begin()
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
        if step.durable or step.not_persisted:
            self.on_stored()
        for event in step.tokens:
            job.emit(event)
        used = len(job.request.prompt_token_ids) + len(job.generated)
        self.accounts.grow(attempt.request.request_id, attempt.decode.info.engine_id, used)

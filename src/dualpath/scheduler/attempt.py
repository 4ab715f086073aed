"""One attempt of a request on a pair of engines, from reservation to the last token: steps 1 to 6 of protocol.api."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from dualpath.core.errors import EngineGoneError, EngineLostError
from dualpath.core.ids import BlockKey, EngineId, PeerId
from dualpath.core.keys import KnownPrefixes, Namespace
from dualpath.core.phase import Phase
from dualpath.core.request import Request, TokenEvent
from dualpath.core.weights import WeightEpoch
from dualpath.protocol.api import (
    DecodeEngineClient,
    DecodeOrder,
    DecodeStep,
    PrefillEngineClient,
    PrefillOrder,
)
from dualpath.scheduler.blocks import BlockHashes
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.desk.api import DeskClient, links
from dualpath.scheduler.engine_call import EngineFailure, EngineStream, ask
from dualpath.scheduler.gate import Gate
from dualpath.scheduler.holding import Hold
from dualpath.scheduler.job import Job
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
    version: str  # of the weights that make its next token
    root: BlockKey  # of its blocks
    namespace_digest: bytes
    num_decode_tokens: int  # that are set aside for it
    decode_slots: tuple[int, ...] = ()
    parents: dict[BlockKey, BlockKey] = field(default_factory=dict)  # of blocks, where only the engine knows them
    lost: EngineFailure | None = None  # why it was cancelled from outside
    needs_prefill: bool = True
    is_decoding: bool = False

    @property
    def engine_ids(self) -> tuple[EngineId, ...]:
        decode_id = self.decode.info.engine_id
        return (self.prefill.info.engine_id, decode_id) if self.needs_prefill else (decode_id,)

    def parent(self, key: BlockKey) -> BlockKey | None:
        """The block before it; None: it is no block of the request's."""
        return self.parents.get(key) or self.job.block_hashes.parent(key)

    def check(self) -> None:
        """Whoever is asked next must be the incarnation that this attempt is about: its hold knows no other."""
        for engine, peer in ((self.prefill, self.prefill_peer), (self.decode, self.decode_peer)):
            if engine.info.engine_id in self.engine_ids and engine.info.peer_id != peer:
                raise EngineFailure(engine.info.engine_id, EngineGoneError(f"{peer} has a successor"))


@dataclass(slots=True, eq=False)
class Steps:
    """What all attempts share. Event loop only."""

    desk: DeskClient
    namespace: Namespace  # of the weights that engines were started with
    config: SchedulerConfig
    gate: Gate
    known_prefixes: KnownPrefixes

    def name_blocks(self, job: Job, epoch: WeightEpoch) -> None:
        """Name the job's blocks, those of its answer so far included, as they are where it is served now."""
        if job.epoch != epoch:
            tokens = (*job.request.prompt_token_ids, *(() if job.request.is_opaque else job.generated))
            root = epoch.root(self.namespace, job.request.cache_salt)
            job.block_hashes = BlockHashes(root, tokens, self.namespace.geometry.block_tokens, self.known_prefixes)
            job.epoch = epoch

    async def run(self, attempt: Attempt) -> None:
        """The numbers are those of dualpath.protocol.api. Raises EngineFailure where another attempt may succeed."""
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
        return tuple(attempt.job.block_hashes.keys[:num_blocks])

    # -- 1 to 4: the stored part of the prompt ------------------------------------------------------------------------

    async def _load_hit(self, attempt: Attempt) -> HitRead:
        request_id = attempt.request.request_id
        try:
            keys = await self._look_up(attempt)
            await self._reserve_decode(attempt)
            reader = await self._plan_reading(attempt, keys)
            return await self._read(attempt, reader, len(keys))
        finally:
            self.desk.reading_over(request_id)

    async def _look_up(self, attempt: Attempt) -> Sequence[BlockKey]:
        """Blocks to read: at least one token is left to compute, as its logits are needed. None where reading them has
        just come to nothing."""
        job, request = attempt.job, attempt.request
        if request.sampling.num_prompt_logprobs is not None:
            return ()  # what was not computed has none
        most = (len(request.prompt_token_ids) - 1) // self.namespace.geometry.block_tokens
        keys = tuple(job.block_hashes.keys[:most])
        if job.recomputes:
            job.recomputes = False
            job.record.num_recomputed_blocks += await self.desk.count_known(keys)
            return ()
        return keys[: await self.desk.look_up(request.request_id, keys)]

    async def _reserve_decode(self, attempt: Attempt) -> None:
        attempt.check()
        engine, request = attempt.decode, attempt.request
        num_slots = self.namespace.geometry.blocks_for(len(request.prompt_token_ids))
        reserve = engine.reserve(request.request_id, num_slots)
        attempt.decode_slots = await ask(engine.info.engine_id, reserve, self.config.reserve_timeout_s)

    async def _plan_reading(self, attempt: Attempt, keys: Sequence[BlockKey]) -> HitReader:
        """The path is chosen as late as possible."""
        plan = await self.desk.plan_reading(attempt.request.request_id, len(keys))
        if not attempt.job.generated:  # a resumed request's record keeps telling of its prompt
            attempt.job.record.path = plan.path
        return HitReader(
            attempt.request.request_id,
            keys[: plan.num_hit_blocks],
            plan,
            attempt.prefill,
            attempt.decode,
            self.desk,
            self.namespace.geometry.block_tokens,
            self.config.read_timeout_s,
            attempt.check,
            attempt.namespace_digest,
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
            self.desk.reads_ended(attempt.request.request_id)
        if hit.moved_slots:
            attempt.decode_slots = tuple(hit.moved_slots.get(i, slot) for i, slot in enumerate(attempt.decode_slots))
        if hit.gone:
            self.desk.blocks_gone(tuple(reader.keys[index] for index in sorted(hit.gone, reverse=True)))
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
            root=attempt.root,
            namespace_digest=attempt.namespace_digest,
        )
        first: TokenEvent | None = None
        timeout_s, patience = self.config.prefill_timeout_s, self.gate.counts_from_s
        stream = EngineStream(engine.info.engine_id, engine.prefill(order), timeout_s, patience)
        async with stream:
            async for event in stream:
                job.enter(Phase.PREFILLING)
                if event is not None:
                    first = event
                    job.enter(Phase.HANDED_OVER)
                    if event.finish_reason is None and not job.request.is_opaque:
                        job.block_hashes.append(event.token_id)
                        job.emit(
                            event, attempt.version
                        )  # else when the prompt's writes are known: the next turn must find them
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
            root=attempt.root,
            namespace_digest=attempt.namespace_digest,
        )
        is_whole, first_version = first.finish_reason is not None, attempt.version
        if is_whole:
            job.block_hashes.append(first.token_id)
        timeout_s, patience = self.config.decode_timeout_s, self.gate.counts_from_s
        stream = EngineStream(engine.info.engine_id, engine.decode(order), timeout_s, patience)
        try:
            self.desk.writes_begin(attempt.request.request_id)
            async with stream:
                attempt.is_decoding = True
                async for step in stream:
                    self._take(attempt, step)
                    if is_whole:
                        job.emit(first, first_version)
        finally:
            attempt.is_decoding = False
            self.desk.writes_end(attempt.request.request_id)
            if is_whole:
                job.emit(first, first_version)  # whatever has become of the writes
        if not job.is_over:
            raise EngineFailure(engine.info.engine_id, EngineLostError("decoding ended without a finish reason"))

    def _take(self, attempt: Attempt, step: DecodeStep) -> None:
        """Writes are known to the index before the tokens are to the client: its next turn finds them."""
        job, request_id, tokens = attempt.job, attempt.request.request_id, step.tokens
        if step.admitted or tokens:
            job.enter(Phase.DECODING)
        if not job.request.is_opaque:
            for event in tokens:
                job.block_hashes.append(event.token_id)
        if step.writing or step.durable or step.not_persisted:
            if step.parents:
                attempt.parents.update(zip(step.writing, step.parents, strict=True))
            begun, durable = links(attempt.parent, step.writing), links(attempt.parent, step.durable)
            self.desk.wrote(request_id, begun, durable, step.not_persisted)
        for event in tokens:
            job.emit(event, attempt.version)
        if step.weight_version is not None:
            attempt.version = step.weight_version
        used = len(job.request.prompt_token_ids) + len(job.generated)
        if used > attempt.num_decode_tokens:
            self.desk.grown(request_id, used)

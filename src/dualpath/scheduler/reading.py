"""Both sides read their share of the hit at the same time; what one side cannot read, the other tries once.

A block that is gone from storage, or that neither side could read, cuts the hit: it and all behind it is recomputed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dualpath.core.errors import DualPathError, EngineBugError, EngineLostError
from dualpath.core.ids import BlockKey, EngineId, RequestId
from dualpath.core.plan import ReadPlan, Role
from dualpath.protocol.api import DecodeEngineClient, PrefillEngineClient, ReadOutcome
from dualpath.scheduler.desk.api import Notes
from dualpath.scheduler.engine_call import EngineFailure, ask

_log = logging.getLogger(__name__)


def is_lost(cause: DualPathError) -> bool:
    """Whether an engine that failed a read is lost for the attempt, and not only for that read."""
    return isinstance(cause, EngineLostError) and not isinstance(cause, EngineBugError)


@dataclass(frozen=True, slots=True)
class HitRead:
    """Verified in the buffers are blocks ``[0, num_hit_blocks)``, of which ``prefill_blocks`` on the prefill side."""

    num_hit_blocks: int
    prefill_blocks: frozenset[int]
    gone: frozenset[int]  # blocks that are not on storage any more
    moved_slots: dict[int, int]  # blocks that have another decode slot than reserved: a late read may write the old one


@dataclass(slots=True)
class _Side:
    role: Role
    engine: PrefillEngineClient | DecodeEngineClient
    ok: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    lost: EngineFailure | None = None

    @property
    def engine_id(self) -> EngineId:
        return self.engine.info.engine_id


class HitReader:
    """Reads one request's hit by a plan. The desk has its shares in the nodes' reading queues: read 0 and read 1."""

    def __init__(
        self,
        request_id: RequestId,
        keys: Sequence[BlockKey],
        plan: ReadPlan,
        prefill: PrefillEngineClient,
        decode: DecodeEngineClient,
        desk: Notes,
        block_tokens: int,
        timeout_s: float,
        check: Callable[[], None],
        namespace_digest: bytes = b"",
    ) -> None:
        self._namespace_digest = namespace_digest
        self._request_id = request_id
        self.keys = keys
        self._plan = plan
        self._sides = (_Side(Role.PREFILL, prefill), _Side(Role.DECODE, decode))
        self._desk = desk
        self._num_queued = len(Role)
        self._block_tokens = block_tokens
        self._timeout_s = timeout_s
        self._check = check  # raises EngineFailure where an engine is not the one that reserved
        self._moved_slots: dict[int, int] = {}
        self.num_bytes = {Role.PREFILL: 0, Role.DECODE: 0}
        split = plan.num_prefill_blocks
        self._shares = (range(split), range(split, plan.num_hit_blocks))

    @property
    def num_prefill_blocks(self) -> int:
        return self._plan.num_prefill_blocks

    async def read(self) -> HitRead:
        """Raises EngineFailure when one of the two engines is lost, or when the decode side's slots are."""
        prefill, decode = self._sides
        shares = zip(self._sides, self._shares, range(len(Role)), strict=True)
        await asyncio.gather(*(self._read_side(side, share, queued) for side, share, queued in shares))
        self._raise_lost()
        for_decode, for_prefill = sorted(prefill.failed), sorted(decode.failed)
        if for_decode or for_prefill:
            _log.warning("%s: %d blocks tried on the other side", self._request_id, len(for_decode) + len(for_prefill))
            second = [
                (side, share, self._queue(side, share))
                for side, share in zip(self._sides, (for_prefill, for_decode), strict=True)
            ]
            await asyncio.gather(*(self._read_side(side, share, queued) for side, share, queued in second))
            self._raise_lost()
        return self._result()

    def _raise_lost(self) -> None:
        for side in self._sides:
            if side.lost is not None:
                raise side.lost

    def _queue(self, side: _Side, share: Sequence[int]) -> int:
        """The read's number."""
        self._num_queued += 1
        number = self._num_queued - 1
        self._desk.read_begins(self._request_id, number, side.role, len(share) * self._block_tokens)
        return number

    async def _read_side(self, side: _Side, share: Sequence[int], number: int) -> None:
        """Failures become marks on the side, so that the other side's reading always comes to its own end.

        A decode side that raised cannot be helped by the other: its late reads may write where prefill would.
        """
        try:
            if not share or side.lost is not None:
                return
            self._check()
            keys = self.keys[share.start : share.stop] if isinstance(share, range) else [self.keys[i] for i in share]
            blocks = list(zip(share, keys, strict=True))
            outcome = await ask(
                side.engine_id, side.engine.read(self._request_id, blocks, self._namespace_digest), self._timeout_s
            )
        except Exception as error:
            _log.warning("%s: reading on %s failed: %r", self._request_id, side.engine_id, error)
            failure = (
                error if isinstance(error, EngineFailure) else EngineFailure(side.engine_id, DualPathError(repr(error)))
            )
            if side.role is Role.DECODE or is_lost(failure.cause):
                side.lost = failure
            outcome = ReadOutcome(failed=frozenset(share))
        finally:
            self._desk.read_ends(self._request_id, number)
        side.ok |= outcome.ok
        side.gone |= outcome.gone
        side.failed |= set(share) - outcome.ok - outcome.gone
        if side.role is Role.DECODE:
            self._moved_slots.update(outcome.moved_slots)
        self.num_bytes[side.role] += outcome.num_bytes

    def _result(self) -> HitRead:
        prefill, decode = self._sides
        present, num_hit = prefill.ok | decode.ok, self._plan.num_hit_blocks
        if len(present) == num_hit:
            return HitRead(num_hit, frozenset(prefill.ok), frozenset(), self._moved_slots)
        num_hit = next((i for i in range(num_hit) if i not in present), num_hit)
        on_prefill = frozenset(i for i in prefill.ok if i < num_hit)
        return HitRead(num_hit, on_prefill, frozenset(prefill.gone | decode.gone) - present, self._moved_slots)

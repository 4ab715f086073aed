"""What one request holds in an engine's staging buffer, and reading its hit blocks into it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from dualpath.core.errors import BlockCorruptError, BlockMissingError, DeadlineExceededError, DualPathError
from dualpath.core.ids import BlockKey, RequestId
from dualpath.core.repeated_warning import RepeatedWarning
from dualpath.core.runtime import Clock
from dualpath.protocol.api import ReadOutcome
from dualpath.traffic.manager import TrafficManager

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Held:
    """One request's staging slots: ``by_block`` are in use for a block of the prompt, ``spare`` not yet."""

    by_block: dict[int, int] = field(default_factory=dict)
    spare: list[int] = field(default_factory=list)


class StagedReads:
    """The staging slots of an engine's requests. Event loop only.

    ``is_written_by_peers``: what could not be read here comes from another engine, into the same block's slot.
    ``can_move``: such a block may get another slot.
    """

    def __init__(
        self,
        traffic: TrafficManager,
        slot_deadline_s: float,
        clock: Clock,
        *,
        is_written_by_peers: bool,
        can_move: bool = True,
    ) -> None:
        self._traffic = traffic
        self._is_written_by_peers, self._can_move = is_written_by_peers, can_move
        self._slot_deadline_s = slot_deadline_s
        self._held: dict[RequestId, Held] = {}
        self._failures = RepeatedWarning(log, clock)

    def slots(self, request_id: RequestId) -> dict[int, int]:
        """Block of the prompt -> staging slot."""
        held = self._held.get(request_id)
        return held.by_block if held else {}

    async def reserve(self, request_id: RequestId, num_slots: int) -> list[int]:
        """Wait for ``num_slots`` slots. Raises DeadlineExceededError; on any way out without them nothing is kept."""
        slots = await self._traffic.slots.acquire(num_slots, self._slot_deadline_s) if num_slots else []
        self._held.setdefault(request_id, Held()).spare.extend(slots)
        return slots

    async def reserve_these(self, request_id: RequestId, slots: Sequence[int], limit_s: float) -> None:
        """As ``reserve``, but of slots that somebody else has chosen."""
        found = await self._traffic.slots.acquire_these(slots, limit_s)
        self._held.setdefault(request_id, Held()).spare.extend(found)

    def assign(self, request_id: RequestId, blocks: Sequence[int]) -> None:
        """Give each block a spare slot, in order."""
        held = self._held[request_id]
        for block in blocks:
            held.by_block[block] = held.spare.pop(0)

    async def read(
        self, request_id: RequestId, blocks: Sequence[tuple[int, BlockKey]], namespace_digest: bytes = b""
    ) -> ReadOutcome:
        """Read verified blocks from storage into the request's slots; see ReadOutcome for what can go wrong.

        Raised is only what leaves the slots unusable: the request has to let go of all of them.
        """
        held = self._held.setdefault(request_id, Held())
        unplaced = [block for block, _ in blocks if block not in held.by_block]
        if len(unplaced) > len(held.spare):
            await self.reserve(request_id, len(unplaced) - len(held.spare))
        self.assign(request_id, unplaced)
        return await self._read(request_id, held, blocks, namespace_digest)

    async def _read(
        self, request_id: RequestId, held: Held, blocks: Sequence[tuple[int, BlockKey]], namespace_digest: bytes
    ) -> ReadOutcome:
        places = [(key, held.by_block[block]) for block, key in blocks]
        transfers = self._traffic.read_blocks(places, namespace_digest=namespace_digest)
        results = await asyncio.gather(*transfers, return_exceptions=True)
        ok, gone, failed, num_bytes = set(), set(), set(), 0
        late: list[int] = []
        for (block, _), transfer, result in zip(blocks, transfers, results, strict=True):
            if isinstance(result, int):
                ok.add(block)
                num_bytes += result
            elif isinstance(result, BlockMissingError | BlockCorruptError):
                gone.add(block)
            elif isinstance(result, DualPathError):
                failed.add(block)
                self._failures.log(f"request {request_id}: reading block {block} failed: {result}")
                if not transfer.quiescent.done():
                    late.append(block)
            else:
                raise result
        moved = self._move(held, late) if late and self._is_written_by_peers else ()
        return ReadOutcome(frozenset(ok), frozenset(gone), frozenset(failed), num_bytes, moved)

    def _move(self, held: Held, blocks: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Late reads may still write these blocks' slots: take others; the pool keeps the old ones until all is quiet.

        Without waiting, and all or none: whoever was told of no move goes on writing into the old slots.
        """
        slots = self._traffic.slots.acquire_now(len(blocks)) if self._can_move else None
        if slots is None:
            raise DeadlineExceededError(f"reads of {len(blocks)} blocks are late, and they cannot get other slots")
        self._traffic.slots.release([held.by_block[block] for block in blocks])
        moved = tuple(zip(blocks, slots, strict=True))
        held.by_block.update(moved)
        return moved

    def release(self, request_id: RequestId) -> None:
        """Give all slots back. A slot that a transfer can still touch stays out of use until it cannot."""
        held = self._held.pop(request_id, None)
        if held is not None:
            self._traffic.slots.release([*held.by_block.values(), *held.spare])

    @property
    def num_requests(self) -> int:
        return len(self._held)

"""Persistence: every Full Block goes to storage as soon as it is complete, prompt misses and generated tokens alike."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from dualpath.core.errors import DualPathError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey
from dualpath.core.repeated_warning import RepeatedWarning
from dualpath.core.runtime import Clock
from dualpath.engine.block_pool import device_units
from dualpath.engine.integrity import Integrity
from dualpath.engine.sequence import Sequence
from dualpath.protocol.api import DecodeStep
from dualpath.store.header import BlockName
from dualpath.traffic.contract import Transfer
from dualpath.traffic.manager import TrafficManager

log = logging.getLogger(__name__)


class Persister:
    """Writes a decode engine's Full Blocks. Event loop only. A failed write costs a future hit, never the request."""

    def __init__(
        self,
        traffic: TrafficManager,
        geometry: KvGeometry,
        slot_deadline_s: float,
        clock: Clock,
        on_copied: Callable[[Sequence], None],
        integrity: Integrity | None,  # None: what lies in a slot is written as it is
    ) -> None:
        self._traffic, self._geometry, self._integrity = traffic, geometry, integrity
        self._slot_deadline_s = slot_deadline_s
        self._on_copied = on_copied  # a device block has left for the staging buffer
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._failures = RepeatedWarning(log, clock)

    def write_prompt(self, seq: Sequence, root: BlockKey) -> None:
        """Write the prompt's new Full Blocks straight from the decode buffer's slots, where prefill has put them."""
        keys = seq.order.keys
        first = seq.order.num_hit_tokens // self._geometry.block_tokens
        writes = []
        for block in range(first, len(keys)):
            parent = keys[block - 1] if block else root
            writes.append((keys[block], parent, seq.slots[block]))
        if not writes:
            return
        transfers = self._traffic.write_blocks(
            writes, have_headers=self._integrity is not None, namespace_digest=seq.order.namespace_digest
        )
        seq.post(DecodeStep(writing=keys[first:]))
        seq.num_writes += len(transfers)
        for (key, *_), transfer in zip(writes, transfers, strict=True):
            self._spawn(self._await_write(seq, key, transfer))

    def write_block(self, seq: Sequence, block: int, key: BlockKey, parent: BlockKey) -> None:
        """Write a device block of generated (or mixed) tokens by way of a write slot."""
        seq.num_writes += 1
        seq.num_copies += 1
        self._spawn(self._write_block(seq, block, key, parent))

    async def _write_block(self, seq: Sequence, block: int, key: BlockKey, parent: BlockKey) -> None:
        slots: list[int] = []
        namespace_digest = seq.order.namespace_digest
        units = device_units([block], self._geometry)
        try:
            try:
                slots = await self._traffic.write_slots.acquire(1, self._slot_deadline_s)
                if self._integrity is not None:
                    name = BlockName(key, parent, self._geometry.block_tokens, namespace_digest)
                    self._integrity.slot_header(slots[0])[:] = await self._integrity.device_header(name, units)
                await self._traffic.copy("device", units, "staging", self._traffic.staging_units_all_layers(slots[0]))
            finally:
                seq.num_copies -= 1
                self._on_copied(seq)
            (transfer,) = self._traffic.write_blocks(
                [(key, parent, slots[0])],
                have_headers=self._integrity is not None,
                namespace_digest=namespace_digest,
            )
        except DualPathError as error:
            self._ended(seq, key, error)
        else:
            await self._await_write(seq, key, transfer)
        finally:
            if slots:
                self._traffic.write_slots.release(slots)

    async def _await_write(self, seq: Sequence, key: BlockKey, transfer: Transfer[int]) -> None:
        try:
            await transfer
        except DualPathError as error:
            self._ended(seq, key, error)
        else:
            self._ended(seq, key, None)

    def _ended(self, seq: Sequence, key: BlockKey, error: Exception | None) -> None:
        if error is not None:
            self._failures.log(f"request {seq.request_id}: a block was not persisted: {error}")
        seq.post(DecodeStep(durable=(key,)) if error is None else DecodeStep(not_persisted=(key,)))
        seq.num_writes -= 1
        seq.settle()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(lambda ended: self._tasks.pop(ended, None))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

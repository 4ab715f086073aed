"""Blocks that fill while vLLM decodes: from its KV by way of a write slot to storage, beside its steps.

A save copies the block at some time after the step that filled it, so vLLM must not give the block away before: that is
what ``SaveJob`` tells vLLM's thread, and how it is called off where vLLM cannot wait.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from dualpath.core.errors import EngineLostError
from dualpath.core.ids import BlockKey
from dualpath.store.header import BlockName
from dualpath.traffic.staging import DEVICE, STAGING
from dualpath.vllm.messages import Save
from dualpath.vllm.worker.parts import NodeParts


def _future() -> Future[None]:
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()
    return future


@dataclass(slots=True, eq=False)
class SaveJob:
    save: Save
    left: Future[None] = field(default_factory=_future)  # vLLM's block is not read any more, or will not be
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_begun: bool = False

    def begin(self) -> None:
        """The block is read from now on. Raises EngineLostError where that has been called off."""
        with self._lock:
            if self.left.done():
                raise EngineLostError("vLLM has given its block to another request")
            self._is_begun = True

    def end(self) -> None:
        with self._lock:
            if not self.left.done():
                self.left.set_result(None)

    def call_off(self) -> None:
        """Unless it has begun; then wait for ``left``, which is a copy away."""
        with self._lock:
            if not self._is_begun and not self.left.done():
                self.left.set_result(None)


async def write_out(
    parts: NodeParts, job: SaveJob, key: BlockKey, parent: BlockKey, namespace_digest: bytes = b""
) -> None:
    """Returns when the block is durable. Raises DualPathError where it is not. On the node's loop."""
    traffic, integrity = parts.traffic, parts.integrity
    slots: list[int] = []
    try:
        try:
            slots = await traffic.write_slots.acquire(1, parts.settings.slot_s)
            job.begin()
            units = parts.kv.units_all_layers(np.array([job.save.block_id], dtype=np.int32))
            if integrity is not None:
                name = BlockName(key, parent, parts.kv.geometry.block_tokens, namespace_digest)
                integrity.slot_header(slots[0])[:] = await integrity.device_header(name, units)
            await traffic.copy(DEVICE, units, STAGING, traffic.staging_units_all_layers(slots[0]))
        finally:
            job.end()
        has_header = integrity is not None
        blocks = [(key, parent, slots[0])]
        (write,) = traffic.write_blocks(blocks, have_headers=has_header, namespace_digest=namespace_digest)
        await write
    finally:
        if slots:
            traffic.write_slots.release(slots)

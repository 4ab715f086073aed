"""A prompt's way from the decode buffer into vLLM's KV, beside vLLM's steps. vLLM's thread."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np

from dualpath.core.errors import DualPathError, EngineLostError
from dualpath.traffic.contract import Transfer
from dualpath.traffic.staging import DEVICE, STAGING
from dualpath.vllm.messages import Load
from dualpath.vllm.worker.parts import NodeParts
from dualpath.vllm.worker.tasks import DecodeTask

_log = logging.getLogger(__name__)


class Take:
    """Never raises: ``error`` says, once it is ``done``, why the blocks are of no use. vLLM computes them then."""

    def __init__(self, parts: NodeParts, load: Load, task: DecodeTask | None) -> None:
        """``task``: pinned while this is made: its slots stay its own for as long as the copy holds them."""
        self.load = load
        self._transfer: Transfer[int] | None = None
        self.error: Exception | None = None if task is not None else EngineLostError("nothing of it is here")
        if task is not None:
            try:
                self._transfer = self._copy(parts, task)
            except (DualPathError, ValueError, LookupError) as error:
                self.error = error

    def _copy(self, parts: NodeParts, task: DecodeTask) -> Transfer[int]:
        load, traffic = self.load, parts.traffic
        blocks = range(load.first_block, load.first_block + len(load.block_ids))
        slots = [task.slots[block] for block in blocks]
        sources = np.concatenate([traffic.staging_units_all_layers(slot) for slot in slots])
        units = parts.kv.units_all_layers(np.array(load.block_ids, dtype=np.int32))
        after = None
        if parts.integrity is not None:
            after = partial(parts.integrity.compare, slots, [task.names[block] for block in blocks], units)
        return traffic.copy(STAGING, sources, DEVICE, units, after)

    @property
    def done(self) -> bool:
        """Nothing writes vLLM's blocks any more."""
        if self._transfer is None:
            return True
        if not (self._transfer.done() and self._transfer.quiescent.done()):
            return False
        self.error = self._transfer.future.exception()  # type: ignore[assignment]  # a copy ends with an Exception
        if self.error is not None:
            _log.warning("request %s: its prompt was not taken and is computed: %s", self.load.xid, self.error)
        self._transfer = None
        return True

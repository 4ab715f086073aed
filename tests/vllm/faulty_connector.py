"""The connector with faults that a request's name asks for: ``fail-..``, ``half-..`` (in the second rank alone) and
``wrong-..``. Every slot begins as poison.

For servers of tests: the sound connector has no such doors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dualpath.core.errors import TransferError
from dualpath.core.ids import RequestId
from dualpath.engine.staged import StagedReads
from dualpath.vllm.connector import DualPathConnector
from dualpath.vllm.worker.layer_loads import LayerLoads

POISON = 0xAB
FAILING_LAYER = 3

_reserve, _wait = StagedReads.reserve, LayerLoads.wait


async def reserve_poisoned(self: StagedReads, request_id: RequestId, num_slots: int) -> list[int]:
    """What lay in a slot before is of no use to anybody: it could be right by chance."""
    slots = await _reserve(self, request_id, num_slots)
    for slot in slots:
        np.frombuffer(self._traffic.slot_view(slot), dtype=np.uint8)[:] = POISON
    return slots


def wait_or_fail(self: LayerLoads, layer: int) -> None:
    fails = self.load.xid.startswith("fail") and layer == FAILING_LAYER
    fails |= self.load.xid.startswith("half") and layer == 0 and self._parts.weights._rank == 1
    if fails and self.error is None:
        self._fail(TransferError("a test's fault"))
    _wait(self, layer)


StagedReads.reserve = reserve_poisoned  # type: ignore[method-assign]
LayerLoads.wait = wait_or_fail  # type: ignore[method-assign]


class FaultyConnector(DualPathConnector):
    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._kv = kv_caches
        super().register_kv_caches(kv_caches)

    def wait_for_layer_load(self, layer_name: str) -> None:
        super().wait_for_layer_load(layer_name)
        metadata: Any = self._connector_metadata
        for load in metadata.work.loads:
            if load.xid.startswith("wrong"):  # one block holds another's content
                kv = self._kv[layer_name]
                kv[load.block_ids[1]] = kv[load.block_ids[0]]

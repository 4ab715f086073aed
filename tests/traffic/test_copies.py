"""Copies through the compute NIC are transfers with ourselves: same bytes, same counters, slots held until they end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.traffic.rig import GEOMETRY, UNIT_BYTES, Rig, make_rig

from dualpath.core.errors import TransferError

LAYERS = GEOMETRY.num_layers


@pytest.fixture(params=["fake", "nixl"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """``nixl`` without an RDMA device: UCX loops back through memory or sockets."""
    rig = make_rig(request.param, "memory", tmp_path, copies_by_nic=True)
    yield rig
    rig.close()


def test_blocks_go_there_and_back(rig: Rig) -> None:
    engine = rig.prefill
    slots = engine.take(3)
    payloads = engine.fill(slots)
    for number, slot in enumerate(slots):
        device = np.arange(number * LAYERS, (number + 1) * LAYERS, dtype=np.int32)
        transfer = engine.manager.copy("staging", engine.manager.staging_units_all_layers(slot), "device", device)
        assert transfer.future.result(10) == LAYERS * UNIT_BYTES
        assert engine.device[number * LAYERS : (number + 1) * LAYERS].numpy().tobytes() == payloads[number]
    engine.device.add_(1)  # wraps around
    back = np.arange(LAYERS, dtype=np.int32)
    engine.manager.copy("device", back, "staging", engine.manager.staging_units_all_layers(slots[2])).future.result(10)
    assert torch.equal(torch.from_numpy(engine.payload(slots[2]).copy()), engine.device[:LAYERS])
    assert engine.payload(slots[1]).tobytes() == payloads[1]
    engine.manager.slots.release(slots)


def test_they_count_as_copies_not_as_network(rig: Rig) -> None:
    engine = rig.decode
    slots = engine.take(1)
    engine.manager.copy(
        "staging", engine.manager.staging_units_all_layers(slots[0]), "device", np.arange(LAYERS, dtype=np.int32)
    ).future.result(10)
    stats = engine.manager.stats()
    assert stats.local_copy_bytes == LAYERS * UNIT_BYTES
    assert sum(stats.kv_transfer_bytes.values()) == 0
    engine.manager.slots.release(slots)


def test_both_ends_in_staging_are_held_until_it_ends(rig: Rig) -> None:
    if rig.fabric is None:
        pytest.skip("real transfers end too soon to look at")
    rig.fabric.delay_s = 0.5
    manager = rig.prefill.manager
    slots = rig.prefill.take(1)
    transfer = manager.copy(
        "staging", manager.staging_units_all_layers(slots[0]), "device", np.arange(LAYERS, dtype=np.int32)
    )
    manager.slots.release(slots)
    assert manager.slots.num_free == 7  # of 8: the transfer may still read it
    transfer.future.result(10)
    assert manager.slots.num_free == 8


def test_closed_is_closed(rig: Rig) -> None:
    rig.prefill.manager.close()
    units = np.arange(LAYERS, dtype=np.int32)
    with pytest.raises(TransferError):
        rig.prefill.manager.copy("device", units, "device", units + LAYERS).future.result(10)

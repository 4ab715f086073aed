"""Headers travel between engines, digests tell what lies in memory, a block that its header belies is not stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from tests.traffic.rig import DECODE_PEER, GEOMETRY, NAMESPACE, ROOT, UNIT_BYTES, Rig, key_of, make_rig

from dualpath.core.errors import BlockCorruptError, KvCorruptError, TransferError
from dualpath.store.header import HEADER_BYTES, BlockName, make_header, payload_digests, write_header
from dualpath.traffic.digests import _from_device
from dualpath.traffic.staging import DEVICE, HEADERS, PAGES, STAGING, device_region


@pytest.fixture(params=["fake", "nixl"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(request.param, "memory", tmp_path, num_pages=4)
    yield rig
    rig.close()


def numbers(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def test_headers_go_both_ways_and_payloads_stay(rig: Rig) -> None:
    slots = rig.decode.take(3)
    payloads = rig.decode.fill(slots)
    headers = [rig.decode.manager.slot_view(slot)[:HEADER_BYTES] for slot in slots]
    for number, header in enumerate(headers):
        header[:] = bytes([number + 1]) * HEADER_BYTES
    manager = rig.prefill.manager
    manager.pull(DECODE_PEER, PAGES, numbers(3, 1), HEADERS, numbers(slots[0], slots[2])).future.result(10)
    assert [manager.page(page)[0] for page in range(4)] == [0, 3, 0, 1]
    manager.page(2)[:] = bytes([9]) * HEADER_BYTES
    manager.push(DECODE_PEER, PAGES, numbers(2), HEADERS, numbers(slots[1])).future.result(10)
    assert [set(header) for header in headers] == [{1}, {9}, {3}]
    assert [rig.decode.payload(slot).tobytes() for slot in slots] == payloads
    rig.decode.manager.slots.release(slots)


def test_digests_cover_as_many_bytes_as_they_are_told_to(rig: Rig) -> None:
    slots = rig.decode.take(2)
    rig.decode.fill(slots)
    units = rig.decode.manager.staging_units(slots, 1)
    found = rig.decode.manager.checks.digests(STAGING, units, np.array([UNIT_BYTES, 5]))
    whole, part = rig.decode.payload(slots[0])[1], rig.decode.payload(slots[1])[1][:5]
    assert found.tolist() == [xxhash.xxh3_64_intdigest(rows.tobytes()) for rows in (whole, part)]
    assert rig.decode.manager.checks.digests(DEVICE, numbers(), np.zeros(0, np.int64)).tolist() == []
    rig.decode.manager.slots.release(slots)


@pytest.mark.parametrize("damage", ["payload", "header", "another key", "another parent", "partly filled"])
def test_a_block_that_its_header_belies_is_not_stored(rig: Rig, damage: str) -> None:
    (slot,) = rig.decode.take(1)
    rig.decode.fill([slot])
    view, parent, num_tokens = rig.decode.manager.slot_view(slot), ROOT, GEOMETRY.block_tokens
    if damage == "partly filled":
        num_tokens -= 1
    if damage == "another parent":
        parent = key_of(9)
    digests = payload_digests(view[HEADER_BYTES:], GEOMETRY, num_tokens)
    key = key_of(2 if damage == "another key" else 1)
    view[:HEADER_BYTES] = make_header(NAMESPACE, BlockName(key, parent, num_tokens), GEOMETRY, digests)
    if damage == "payload":
        view[-1] ^= 1
    if damage == "header":
        view[100] ^= 1
    (write,) = rig.decode.manager.write_blocks([(key_of(1), ROOT, slot)], have_headers=True)
    with pytest.raises(BlockCorruptError):
        write.future.result(10)
    assert not list(rig.store.list_blocks())
    stats = rig.decode.manager.stats()
    assert (stats.blocks_not_persisted, stats.kv_corrupt) == (1, 1)
    write_header(view, NAMESPACE, key_of(1), ROOT, GEOMETRY)
    (write,) = rig.decode.manager.write_blocks([(key_of(1), ROOT, slot)], have_headers=True)
    write.future.result(10)
    assert rig.store.read_header(key_of(1)) == bytes(view[:HEADER_BYTES])
    rig.decode.manager.slots.release([slot])


def test_work_beside_ends_like_a_transfer(rig: Rig) -> None:
    checks, seen = rig.prefill.manager.checks, []
    checks.submit(lambda: seen.append(1)).future.result(10)
    assert seen == [1]

    def differ() -> None:
        raise checks.corrupt("two Layer Blocks differ", 2)

    def run_out() -> None:
        raise MemoryError

    with pytest.raises(KvCorruptError, match="differ"):
        checks.submit(differ).future.result(10)
    assert rig.prefill.manager.stats().kv_corrupt == 2
    with pytest.raises(TransferError, match="could not be checked: MemoryError"):
        checks.submit(run_out).future.result(10)
    rig.prefill.manager.close()
    with pytest.raises(TransferError, match="closing"):
        checks.submit(differ).future.result(10)


def test_device_memory_is_digested_in_its_order() -> None:
    """As on a GPU, whose memory comes to the host first."""
    memory = torch.randint(0, 256, (9, UNIT_BYTES), dtype=torch.uint8)
    units = numbers(7, 0, 3)
    found = _from_device(device_region(memory, UNIT_BYTES), units, np.array([UNIT_BYTES, 1, 9]))
    spans = [(7, UNIT_BYTES), (0, 1), (3, 9)]
    assert found.tolist() == [xxhash.xxh3_64_intdigest(memory[unit, :end].numpy().tobytes()) for unit, end in spans]

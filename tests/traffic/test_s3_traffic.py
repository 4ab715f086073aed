"""An engine's traffic over S3: slots of abandoned reads stay out of use, deadlines hold, the emulated NIC paces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from tests.store.faulty_proxy import FaultyProxy, faulty_proxy
from tests.store.s3_server import BUCKET, S3Server, s3_server, set_credentials
from tests.traffic.rig import OBJECT_BYTES, Rig, key_of, make_rig, wait_until

from dualpath.core.errors import BlockCorruptError, BlockMissingError, TransferTimeoutError
from dualpath.core.runtime import SystemRuntime
from dualpath.traffic.storage_nic import StorageNic


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    set_credentials(monkeypatch, tmp_path)
    with s3_server(tmp_path / "s3") as server:
        yield server


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def rig(proxy: FaultyProxy, tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig("nixl", f"s3://{BUCKET}/kv?endpoint={proxy.endpoint}", tmp_path, max_reads_in_flight=4)
    yield rig
    proxy.let_go()
    rig.close()


def fails(transfer: Future[int], error: type[Exception]) -> bool:
    with pytest.raises(error):
        transfer.future.result(30)
    return True


def test_what_one_engine_writes_another_reads_back(rig: Rig) -> None:
    keys = [key_of(number) for number in range(4)]
    slots = rig.decode.take(4)
    payloads = rig.decode.fill(slots)
    rig.decode.write(keys, slots)
    mine = rig.prefill.take(4)
    transfers = rig.prefill.manager.read_blocks(list(zip(keys, mine, strict=True)))
    assert [transfer.future.result(30) for transfer in transfers] == [OBJECT_BYTES] * 4
    assert [rig.prefill.payload(slot).tobytes() for slot in mine] == payloads
    assert rig.prefill.manager.stats().storage_read_bytes == 4 * OBJECT_BYTES


def test_missing_and_damaged_objects_are_counted_as_such(rig: Rig) -> None:
    (slot,) = rig.decode.take(1)
    rig.decode.fill([slot])
    rig.decode.write([key_of(1)], [slot])
    rig.decode.io.corrupt_reads([key_of(1)])
    slots = rig.decode.take(2)
    damaged, missing = rig.decode.manager.read_blocks([(key_of(1), slots[0]), (key_of(2), slots[1])])
    assert fails(damaged, BlockCorruptError)
    assert fails(missing, BlockMissingError)
    stats = rig.decode.manager.stats()
    assert (stats.blocks_corrupt, stats.blocks_missing, stats.blocks_failed) == (1, 1, 0)


def test_the_slot_of_an_abandoned_read_is_not_reused_while_bytes_may_come(rig: Rig, proxy: FaultyProxy) -> None:
    (slot,) = rig.decode.take(1)
    rig.decode.fill([slot])
    rig.decode.write([key_of(1)], [slot])
    rig.decode.manager.slots.release([slot])
    slots = rig.decode.take(8)
    proxy.fail("GET", is_held=True)
    (late,) = rig.decode.manager.read_blocks([(key_of(1), slots[0])], deadline_s=0.2)
    assert fails(late, TransferTimeoutError)
    assert rig.decode.manager.stats().num_lingering == 1
    rig.decode.manager.slots.release(slots)
    assert rig.decode.manager.slots.num_free == 7
    assert slots[0] not in rig.decode.take(7)
    assert not late.quiescent.done()
    proxy.let_go()
    wait_until(late.quiescent.done, 30)
    assert rig.decode.take(1) == [slots[0]]
    wait_until(lambda: rig.decode.manager.stats().num_lingering == 0)
    rig.decode.manager.slots.check_integrity()


def test_a_deadline_holds_while_the_server_is_stopped(rig: Rig, server: S3Server) -> None:
    (slot, other) = rig.decode.take(2)
    rig.decode.fill([slot])
    rig.decode.write([key_of(1)], [slot])
    server.stop()
    try:
        (read,) = rig.decode.manager.read_blocks([(key_of(1), other)], deadline_s=0.3)
        (write,) = rig.decode.manager.write_blocks([(key_of(2), key_of(1), slot)], deadline_s=0.3)
        assert fails(read, TransferTimeoutError)
        assert fails(write, TransferTimeoutError)
        assert rig.decode.manager.stats().blocks_not_persisted == 1
    finally:
        server.go_on()
    wait_until(lambda: read.quiescent.done() and write.quiescent.done(), 60)
    (again,) = rig.decode.manager.read_blocks([(key_of(1), other)])
    assert again.future.result(30) == OBJECT_BYTES


def test_the_emulated_nic_paces_objects_of_s3_too(server: S3Server, tmp_path: Path) -> None:
    num_blocks, clock = 8, SystemRuntime()
    nic = StorageNic(20 * OBJECT_BYTES, clock)  # 20 objects a second
    rig = make_rig("nixl", server.url("kv"), tmp_path, clock=clock, nic=nic)
    try:
        slots = rig.decode.take(num_blocks)
        rig.decode.fill(slots)
        keys = [key_of(number) for number in range(num_blocks)]
        start_s = time.monotonic()
        rig.decode.write(keys, slots)
        written_s = time.monotonic()
        for transfer in rig.decode.manager.read_blocks(list(zip(keys, slots, strict=True))):
            assert transfer.future.result(30) == OBJECT_BYTES
        assert written_s - start_s >= num_blocks / 20 * 0.99
        assert time.monotonic() - written_s >= num_blocks / 20 * 0.99
        stats = rig.decode.manager.stats()
        assert stats.storage_read_bytes == stats.storage_write_bytes == num_blocks * OBJECT_BYTES
    finally:
        rig.close()

"""What engines rely on: right bytes, exact counters, deadlines, no slot reused while anything can still touch it."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.traffic.rig import (
    DECODE,
    DECODE_PEER,
    GEOMETRY,
    OBJECT_BYTES,
    PREFILL_PEER,
    ROOT,
    UNIT_BYTES,
    ManualClock,
    Rig,
    key_of,
    make_rig,
    traffic_threads,
    wait_until,
)

from dualpath.core.errors import (
    BlockCorruptError,
    BlockMissingError,
    DeadlineExceededError,
    KvCorruptError,
    PeerLostError,
    StoreError,
    TransferError,
    TransferTimeoutError,
)
from dualpath.core.ids import BlockKey
from dualpath.traffic.contract import Units
from dualpath.traffic.fake_transport import Fate
from dualpath.traffic.storage_nic import NicDirection, StorageNic

MakeRig = Callable[..., Rig]
BACKENDS = [("fake", "memory"), ("nixl", "memory"), ("nixl", "files")]


@pytest.fixture(params=BACKENDS, ids="-".join)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    transport, store = request.param
    rig = make_rig(transport, store, tmp_path)
    yield rig
    rig.close()


@pytest.fixture
def fake_rig(tmp_path: Path) -> Iterator[MakeRig]:
    """A factory, for tests that choose the clock or the settings."""
    rigs: list[Rig] = []

    def make(**settings: Any) -> Rig:
        rigs.append(make_rig("fake", "memory", tmp_path, **settings))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


def units(*numbers: int) -> Units:
    return np.array(numbers, dtype=np.int32)


# --- storage ----------------------------------------------------------------------------------------------------------


def test_what_one_engine_writes_another_reads_back(rig: Rig) -> None:
    keys = [key_of(number) for number in range(5)]
    slots = rig.decode.take(5)
    payloads = rig.decode.fill(slots)
    rig.decode.write(keys, slots)
    into = rig.prefill.take(5)[::-1]
    reads = rig.prefill.manager.read_blocks(list(zip(keys, into, strict=True)))
    assert [read.future.result(5) for read in reads] == [OBJECT_BYTES] * 5
    assert [rig.prefill.payload(slot).tobytes() for slot in into] == payloads
    assert rig.decode.manager.stats().storage_write_bytes == 5 * OBJECT_BYTES
    stats = rig.prefill.manager.stats()
    assert stats.storage_read_bytes == 5 * OBJECT_BYTES
    assert (stats.read_queue_tokens, stats.num_in_flight, stats.num_lingering) == (0, 0, 0)
    assert (stats.blocks_missing, stats.blocks_corrupt, stats.blocks_failed, stats.storage_write_bytes) == (0, 0, 0, 0)


def test_each_bad_block_fails_alone_and_by_its_own_name(rig: Rig) -> None:
    keys = [key_of(number) for number in range(4)]
    slots = rig.decode.take(4)
    payloads = rig.decode.fill(slots)
    rig.decode.write([keys[0], keys[1], keys[3]], [slots[0], slots[1], slots[3]])
    rig.prefill.io.corrupt_reads([keys[1]])
    rig.prefill.io.fail_reads([keys[3]])
    into = rig.prefill.take(4)
    reads = rig.prefill.manager.read_blocks(list(zip(keys, into, strict=True)))
    assert reads[0].future.result(5) == OBJECT_BYTES
    for read, error in zip(reads[1:], (BlockCorruptError, BlockMissingError, StoreError), strict=True):
        with pytest.raises(error):
            read.future.result(5)
        assert read.quiescent.done()
    assert rig.prefill.payload(into[0]).tobytes() == payloads[0]
    stats = rig.prefill.manager.stats()
    assert (stats.blocks_corrupt, stats.blocks_missing, stats.blocks_failed) == (1, 1, 1)
    assert stats.storage_read_bytes == 2 * OBJECT_BYTES  # the corrupt one crossed the NIC, too


def test_another_namespaces_block_is_corrupt_here(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its header says so, although it lies where ours do."""
    (slot,) = rig.decode.take(1)
    rig.decode.fill([slot])
    memory = rig.decode.manager._memory
    request, own = memory.staging.request, memory._digest
    monkeypatch.setattr(memory.staging, "request", lambda key, slot, _: request(key, slot, own))
    monkeypatch.setattr(memory, "_digest", b"x" * 16)
    rig.decode.write([key_of(1)], [slot])
    (into,) = rig.prefill.take(1)
    with pytest.raises(BlockCorruptError, match="another namespace"):
        rig.prefill.manager.read_blocks([(key_of(1), into)])[0].future.result(5)


def test_a_failed_write_is_counted_and_leaves_no_object(rig: Rig) -> None:
    (slot,) = rig.decode.take(1)
    rig.decode.io.fail_writes()
    with pytest.raises(StoreError):
        rig.decode.manager.write_blocks([(key_of(1), ROOT, slot)])[0].future.result(5)
    assert rig.decode.manager.stats().blocks_not_persisted == 1


def test_write_slots_are_apart_from_prompt_slots(rig: Rig) -> None:
    manager = rig.decode.manager
    rig.decode.take(manager.slots.num_slots)
    slots = asyncio.run(manager.write_slots.acquire(2, 1.0))
    rig.decode.fill(slots)
    rig.decode.write([key_of(1), key_of(2)], slots)
    manager.write_slots.release(slots)
    assert manager.write_slots.num_free == 2


def test_a_late_read_holds_its_slot_until_it_has_come_to_rest(rig: Rig) -> None:
    manager = rig.prefill.manager
    source = rig.decode.take(1)
    rig.decode.fill(source)
    rig.decode.write([key_of(1)], source)
    slots = rig.prefill.take(manager.slots.num_slots)
    rig.prefill.io.hang_reads()
    (read,) = manager.read_blocks([(key_of(1), slots[0])], deadline_s=0.05)
    with pytest.raises(TransferTimeoutError):
        read.future.result(5)
    assert not read.quiescent.done()
    manager.slots.release(slots)
    assert manager.slots.num_free == len(slots) - 1
    with pytest.raises(DeadlineExceededError):
        asyncio.run(manager.slots.acquire(len(slots), 0.02))
    assert (manager.stats().blocks_failed, manager.stats().num_lingering) == (1, 1)
    rig.prefill.io.unhang()
    read.quiescent.result(5)
    assert sorted(rig.prefill.take(len(slots))) == sorted(slots)


def test_a_late_write_holds_its_slot_too(rig: Rig) -> None:
    manager = rig.decode.manager
    (slot,) = rig.decode.take(1)
    rig.decode.io.hang_writes()
    (write,) = manager.write_blocks([(key_of(1), ROOT, slot)], deadline_s=0.05)
    with pytest.raises(TransferTimeoutError):
        write.future.result(5)
    manager.slots.release([slot])
    assert manager.slots.num_used == 1
    rig.decode.io.unhang()
    write.quiescent.result(5)
    assert manager.slots.num_used == 0


def test_reads_start_in_order_and_no_more_than_allowed_at_once(fake_rig: MakeRig) -> None:
    rig = fake_rig(max_reads_in_flight=3)
    keys = [key_of(number) for number in range(8)]
    slots = rig.decode.take(8)
    rig.decode.write(keys, slots)
    rig.prefill.io.hang_reads()
    into = rig.prefill.take(8)
    reads = rig.prefill.manager.read_blocks(list(zip(keys, into, strict=True)))
    wait_until(lambda: len(rig.prefill.io.started) == 3)
    time.sleep(0.02)
    assert rig.prefill.io.started == keys[:3]
    assert rig.prefill.manager.stats().read_queue_tokens == 8 * GEOMETRY.block_tokens
    rig.prefill.io.unhang()
    assert all(read.future.result(5) == OBJECT_BYTES for read in reads)
    assert rig.prefill.io.started == keys


def test_a_stuck_storage_does_not_block_those_behind_for_ever(fake_rig: MakeRig) -> None:
    rig = fake_rig(max_reads_in_flight=2)
    keys = [key_of(number) for number in range(4)]
    rig.decode.write(keys, rig.decode.take(4))
    rig.prefill.io.hang_reads(keys[:2])
    reads = rig.prefill.manager.read_blocks(list(zip(keys, rig.prefill.take(4), strict=True)), deadline_s=0.1)
    assert [read.future.result(5) for read in reads[2:]] == [OBJECT_BYTES] * 2
    for read in reads[:2]:
        with pytest.raises(TransferTimeoutError):
            read.future.result(5)


# --- the storage NIC's emulation --------------------------------------------------------------------------------------


def test_paced_reads_end_one_by_one_and_do_not_block_anything_else(fake_rig: MakeRig) -> None:
    clock = ManualClock()
    nic = StorageNic(OBJECT_BYTES / 2.0, clock)  # two seconds a block
    rig = fake_rig(clock=clock, nic=nic, storage_deadline_s=1.0)
    keys = [key_of(number) for number in range(4)]
    for key, slot in zip(keys, rig.decode.take(4), strict=True):
        rig.store.put_raw(key, rig.object_bytes(key, slot))  # type: ignore[attr-defined]
    slots = rig.prefill.take(5)
    with pytest.raises(BlockMissingError):
        rig.prefill.manager.read_blocks([(key_of(99), slots[4])])[0].future.result(5)  # costs no bandwidth
    reads = rig.prefill.manager.read_blocks(list(zip(keys, slots, strict=False)))
    assert rig.prefill.manager.pull(DECODE_PEER, "device", units(0), "staging", units(0)).future.result(5) == UNIT_BYTES
    for done in range(4):  # the last one ends 8 s after submission: its deadline of 1 s starts when its turn comes
        time.sleep(0.01)
        assert [read.done() for read in reads] == [True] * done + [False] * (4 - done)
        clock.time_s += 2.0
        assert reads[done].future.result(5) == OBJECT_BYTES
    assert nic.passed_bytes(NicDirection.READ) == 4 * OBJECT_BYTES


def test_a_storage_deadline_starts_when_the_emulated_nic_is_done(fake_rig: MakeRig) -> None:
    clock = ManualClock()
    rig = fake_rig(clock=clock, nic=StorageNic(OBJECT_BYTES / 2.0, clock), storage_deadline_s=1.0)
    slots = rig.prefill.take(2)
    rig.prefill.io.hang_reads()
    rig.store.put_raw(key_of(1), rig.object_bytes(key_of(1), slots[0]))  # type: ignore[attr-defined]
    reads = rig.prefill.manager.read_blocks([(key_of(1), slots[0]), (key_of(1), slots[1])])
    wait_until(lambda: len(rig.prefill.io.started) == 2)
    clock.time_s += 2.5
    time.sleep(0.05)
    assert not any(read.done() for read in reads)
    clock.time_s += 1.0
    with pytest.raises(TransferTimeoutError):
        reads[0].future.result(5)
    time.sleep(0.05)
    assert not reads[1].done()
    rig.prefill.io.unhang()
    clock.time_s += 1.0
    assert reads[1].future.result(5) == OBJECT_BYTES


def test_reads_do_not_wait_for_paced_writes(fake_rig: MakeRig) -> None:
    clock = ManualClock()
    rig = fake_rig(clock=clock, nic=StorageNic(OBJECT_BYTES / 2.0, clock))
    slots = rig.decode.take(3)
    writes = rig.decode.manager.write_blocks([(key_of(slot), ROOT, slot) for slot in slots[:2]])
    wait_until(lambda: rig.store.exists(key_of(slots[0])))
    (read,) = rig.decode.manager.read_blocks([(key_of(slots[0]), slots[2])])
    wait_until(lambda: rig.decode.io.started == [key_of(slots[0])])
    clock.time_s += 2.0
    assert read.future.result(5) == writes[0].future.result(5) == OBJECT_BYTES
    assert not writes[1].done()
    clock.time_s += 2.0
    writes[1].future.result(5)


# --- peers and local copies -------------------------------------------------------------------------------------------


def test_pulls_and_pushes_count_where_they_begin_and_by_direction(rig: Rig) -> None:
    slots = rig.decode.take(3)
    rig.decode.fill(slots)
    prefill, decode = rig.prefill.manager, rig.decode.manager
    with decode.expecting_peers():
        remote = prefill.staging_units(slots, 1)
        assert prefill.pull(DECODE_PEER, "device", units(4, 0, 2), "staging", remote).future.result(5) == 3 * UNIT_BYTES
        for unit, slot in zip((4, 0, 2), slots, strict=True):
            assert torch.equal(rig.prefill.device[unit], torch.from_numpy(rig.decode.payload(slot)[1].copy()))
        rig.prefill.device[7].fill_(9)
        last = prefill.staging_units([slots[2]], 2)
        assert prefill.push(DECODE_PEER, "device", units(7), "staging", last).future.result(5) == UNIT_BYTES
        assert np.all(rig.decode.payload(slots[2])[2] == 9)
    assert prefill.stats().kv_transfer_bytes == {
        "decode_to_prefill": 3 * UNIT_BYTES,
        "prefill_to_decode": UNIT_BYTES,
    }
    with prefill.expecting_peers():
        assert (
            decode.push(PREFILL_PEER, "staging", units(0, 1), "device", units(0, 1)).future.result(5) == 2 * UNIT_BYTES
        )
    assert decode.stats().kv_transfer_bytes == {"decode_to_prefill": 2 * UNIT_BYTES, "prefill_to_decode": 0}


def test_staging_to_staging_transfers_hold_our_slots_only(rig: Rig) -> None:
    (theirs,) = rig.decode.take(1)
    (ours,) = rig.prefill.take(1)
    payload = rig.decode.fill([theirs])[0]
    local, remote = (rig.prefill.manager.staging_units_all_layers(slot) for slot in (ours, theirs))
    with rig.decode.manager.expecting_peers():
        rig.prefill.manager.pull(DECODE_PEER, "staging", local, "staging", remote).future.result(5)
    assert rig.prefill.payload(ours).tobytes() == payload
    rig.prefill.manager.slots.release([ours])
    assert rig.prefill.manager.slots.num_used == 0


def test_local_copies_go_between_staging_and_device(rig: Rig) -> None:
    engine, manager = rig.decode, rig.decode.manager
    slots = engine.take(2)
    payloads = engine.fill(slots)
    every = np.concatenate([manager.staging_units_all_layers(slot) for slot in slots])
    assert manager.copy("staging", every, "device", np.arange(6, dtype=np.int32)).future.result(5) == 6 * UNIT_BYTES
    assert engine.device[:6].numpy().tobytes() == b"".join(payloads)
    manager.copy("device", units(0, 5), "staging", manager.staging_units(slots, 0)).future.result(5)
    assert engine.payload(slots[1])[0].tobytes() == engine.device[5].numpy().tobytes()
    assert manager.stats().local_copy_bytes == 8 * UNIT_BYTES


def test_nothing_to_move_is_done_at_once(rig: Rig) -> None:
    none = np.empty(0, dtype=np.int32)
    assert rig.prefill.manager.pull(DECODE_PEER, "device", none, "staging", none).future.result(0) == 0
    assert rig.prefill.manager.copy("device", none, "staging", none).future.result(0) == 0
    assert rig.prefill.manager.read_blocks([]) == []


def test_misuse_is_refused_before_anything_moves(rig: Rig) -> None:
    manager = rig.prefill.manager
    with pytest.raises(ValueError, match="not granted"):
        manager.read_blocks([(key_of(1), 0)])
    with pytest.raises(ValueError, match="not granted"):
        manager.copy("device", units(0), "staging", units(0))
    with pytest.raises(ValueError, match="on the other"):
        manager.pull(DECODE_PEER, "device", units(0, 1), "staging", units(0))
    for outside in (-1, len(rig.prefill.device)):
        with pytest.raises(ValueError, match="outside of region"):
            manager.pull(DECODE_PEER, "device", units(0, outside), "staging", units(0, 1))
    with pytest.raises(TransferError):
        manager.pull(DECODE_PEER, "device", units(0), "staging", units(99)).future.result(5)
    manager.slots.check_integrity()


def test_a_peer_that_hangs_costs_a_deadline_and_a_slot_until_it_answers(fake_rig: MakeRig) -> None:
    rig = fake_rig()
    assert rig.fabric is not None
    (slot,) = rig.prefill.take(1)
    rig.decode.fill(rig.decode.take(1))
    rig.fabric.hang(DECODE)
    pull = rig.prefill.manager.pull(DECODE_PEER, "staging", units(slot * 3), "staging", units(0), deadline_s=0.03)
    with pytest.raises(TransferTimeoutError, match="decode-0"):
        pull.future.result(5)
    rig.prefill.manager.slots.release([slot])
    assert rig.prefill.manager.slots.num_used == 1
    rig.fabric.unhang(DECODE)
    pull.quiescent.result(5)
    assert rig.prefill.manager.slots.num_used == 0
    assert rig.prefill.manager.stats().kv_transfer_bytes["decode_to_prefill"] == 0


def test_a_dead_peer_fails_what_is_under_way_and_what_follows(fake_rig: MakeRig) -> None:
    rig = fake_rig()
    assert rig.fabric is not None
    rig.fabric.delay_s = 60.0
    pull = rig.prefill.manager.pull(DECODE_PEER, "device", units(0), "staging", units(0))
    rig.fabric.kill(DECODE)
    for transfer in (pull, rig.prefill.manager.push(DECODE_PEER, "device", units(0), "staging", units(0))):
        with pytest.raises(PeerLostError):
            transfer.future.result(5)
        assert transfer.quiescent.done()


def test_a_failing_link_is_a_transfer_error_and_recovers(fake_rig: MakeRig) -> None:
    rig = fake_rig()
    assert rig.fabric is not None
    rig.fabric.fail(DECODE)
    with pytest.raises(TransferError, match="injected"):
        rig.prefill.manager.pull(DECODE_PEER, "device", units(0), "staging", units(0)).future.result(5)
    rig.fabric.fail(DECODE, failing=False)
    with pytest.raises(PeerLostError):  # nothing with it can be relied on before it is added again
        rig.prefill.manager.pull(DECODE_PEER, "device", units(0), "staging", units(0)).future.result(5)
    rig.prefill.manager.add_peer(rig.decode.manager.metadata())
    assert rig.prefill.manager.pull(DECODE_PEER, "device", units(0), "staging", units(0)).future.result(5) == UNIT_BYTES


def test_a_failed_push_may_arrive_until_the_peer_has_removed_us(fake_rig: MakeRig) -> None:
    rig = fake_rig()
    assert rig.fabric is not None
    (slot,) = rig.decode.take(1)
    rig.decode.fill([slot])
    before = rig.decode.payload(slot).copy()
    rig.fabric.judge = lambda *_: Fate(fails=True, late_s=(0.05,))
    push = rig.prefill.manager.push(DECODE_PEER, "device", units(0), "staging", units(slot * 3))
    with pytest.raises(TransferError, match="injected"):
        push.future.result(5)
    assert push.quiescent.result(5) is None, "our own memory is at rest"
    assert not push.settled.done()
    assert rig.prefill.manager.stats().broken_peers == (DECODE_PEER,)
    with pytest.raises(TransferError, match="come to rest"):
        rig.prefill.manager.add_peer(rig.decode.manager.metadata())
    rig.decode.manager.remove_peer(PREFILL_PEER)
    rig.prefill.manager.peer_at_rest(DECODE_PEER)
    push.settled.result(5)
    time.sleep(0.1)
    rig.fabric.tick()
    assert rig.fabric.num_late == 0
    assert np.array_equal(rig.decode.payload(slot), before)
    rig.fabric.judge = None
    rig.prefill.manager.add_peer(rig.decode.manager.metadata())
    assert rig.prefill.manager.stats().broken_peers == ()
    rig.prefill.manager.push(DECODE_PEER, "device", units(0), "staging", units(slot * 3)).future.result(5)
    assert not rig.decode.payload(slot)[0].any()


def test_what_has_arrived_is_compared_before_anybody_uses_it(rig: Rig) -> None:
    def differ() -> None:
        raise rig.prefill.manager.checks.corrupt("other bytes than were sent")

    rig.decode.fill(rig.decode.take(1))
    with pytest.raises(KvCorruptError):
        rig.prefill.manager.pull(DECODE_PEER, "device", units(0), "staging", units(0), None, differ).future.result(5)
    (slot,) = rig.prefill.take(1)
    with pytest.raises(KvCorruptError):
        rig.prefill.manager.copy("staging", units(slot * 3), "device", units(1), differ).future.result(5)
    assert rig.prefill.manager.stats().kv_corrupt == 2


def test_a_removed_peers_transfers_fail_and_it_can_be_added_again(fake_rig: MakeRig) -> None:
    rig = fake_rig()
    assert rig.fabric is not None
    rig.fabric.hang(DECODE)
    pull = rig.prefill.manager.pull(DECODE_PEER, "device", units(0), "staging", units(0))
    rig.prefill.manager.remove_peer(DECODE_PEER)
    with pytest.raises(PeerLostError, match="removed"):
        pull.future.result(5)
    assert pull.quiescent.done()
    assert pull.settled.done()
    with pytest.raises(PeerLostError):
        rig.prefill.manager.pull(DECODE_PEER, "device", units(0), "staging", units(0)).future.result(5)
    rig.fabric.unhang(DECODE)
    rig.prefill.manager.add_peer(rig.decode.manager.metadata())
    assert rig.prefill.manager.pull(DECODE_PEER, "device", units(0), "staging", units(0)).future.result(5) == UNIT_BYTES


# --- waiting ----------------------------------------------------------------------------------------------------------


async def test_cancelling_whoever_awaits_cancels_no_transfer(rig: Rig) -> None:
    (slot,) = await rig.decode.manager.slots.acquire(1)
    rig.decode.fill([slot])
    rig.decode.io.hang_writes()
    (write,) = rig.decode.manager.write_blocks([(key_of(1), ROOT, slot)])

    async def wait() -> int:
        return await write

    task = asyncio.create_task(wait())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    rig.decode.io.unhang()
    assert await write == OBJECT_BYTES
    assert await asyncio.gather(write, write) == [OBJECT_BYTES] * 2


async def test_a_failure_that_nobody_awaits_any_more_is_not_logged(rig: Rig) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    slots = await rig.decode.manager.slots.acquire(2)
    rig.decode.io.hang_reads()
    reads = rig.decode.manager.read_blocks([(key_of(n), slot) for n, slot in enumerate(slots)])
    waiting = asyncio.gather(*reads)
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    rig.decode.io.unhang()
    for read in reads:
        with pytest.raises(BlockMissingError):
            await read
    del waiting, reads, read
    gc.collect()
    assert not complaints


def test_callbacks_may_submit_more(rig: Rig) -> None:
    outcome: Future[int] = Future()
    prefill = rig.prefill.manager

    def pull_next(_: object) -> None:
        transfer = prefill.pull(DECODE_PEER, "device", units(1), "staging", units(1))
        transfer.future.add_done_callback(lambda future: outcome.set_result(future.result()))

    with rig.decode.manager.expecting_peers():
        prefill.pull(DECODE_PEER, "device", units(0), "staging", units(0)).future.add_done_callback(pull_next)
        assert outcome.result(5) == UNIT_BYTES


def test_spans_tell_what_moved(rig: Rig) -> None:
    spans: list[tuple[str, float, float, int]] = []
    rig.decode.manager.trace = lambda name, start_s, end_s, args: spans.append((name, start_s, end_s, args["bytes"]))
    (slot,) = rig.decode.take(1)
    rig.decode.write([key_of(1)], [slot])
    ((name, start_s, end_s, num_bytes),) = spans
    assert (name, num_bytes) == ("storage write", OBJECT_BYTES)
    assert 0 < end_s - start_s < 5


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("transport", "store"), BACKENDS)
def test_closing_fails_what_is_in_flight_and_leaves_no_thread_and_no_fd(
    transport: str, store: str, tmp_path: Path
) -> None:
    make_rig(transport, store, tmp_path / "warm-up").close()  # libraries keep some files open once loaded
    gc.collect()
    num_files = len(os.listdir("/proc/self/fd"))
    rig = make_rig(transport, store, tmp_path)
    slots = rig.decode.take(4)
    rig.decode.fill(slots)
    rig.decode.write([key_of(1)], slots[:1])
    rig.decode.io.hang_reads()
    rig.decode.io.hang_writes()
    transfers = [
        *rig.decode.manager.read_blocks([(key_of(1), slots[1]), (key_of(2), slots[2])]),
        *rig.decode.manager.write_blocks([(key_of(3), ROOT, slots[3])]),
    ]
    rig.decode.manager.close(deadline_s=0.05)
    for transfer in transfers:
        with pytest.raises(TransferError):
            transfer.future.result(0)
    late = rig.decode.manager.pull(PREFILL_PEER, "staging", units(0), "staging", units(0))
    with pytest.raises(TransferError, match="not running"):
        late.future.result(0)
    rig.close()
    assert traffic_threads() == []
    assert len(os.listdir("/proc/self/fd")) <= num_files


def test_closing_waits_for_hung_transfers_that_come_to_rest(fake_rig: MakeRig) -> None:
    rig = fake_rig()
    assert rig.fabric is not None
    (slot,) = rig.prefill.take(1)
    pull = rig.prefill.manager.pull(DECODE_PEER, "staging", units(slot * 3), "staging", units(0))
    rig.fabric.delay_s = 60.0
    rig.prefill.manager.close()
    assert pull.quiescent.done()


def test_closing_waits_for_storage_that_answers_in_time(fake_rig: MakeRig) -> None:
    rig = fake_rig()
    rig.decode.io.hang_reads()
    (read,) = rig.decode.manager.read_blocks([(key_of(1), rig.decode.take(1)[0])])
    threading.Timer(0.2, rig.decode.io.unhang).start()
    rig.decode.manager.close(deadline_s=30.0)
    assert read.quiescent.done()


def test_before_the_start_transfers_fail_instead_of_waiting(fake_rig: MakeRig) -> None:
    rig = fake_rig()
    rig.decode.manager.close()
    with pytest.raises(TransferError, match="not running"):
        rig.decode.manager.add_peer(rig.prefill.manager.metadata())


def test_an_idle_engine_looks_a_few_times_a_second(tmp_path: Path) -> None:
    """And not a thousand times, as it does while something moves."""
    rig = make_rig("nixl", "files", tmp_path)
    assert rig.prefill.manager._loop.wait_s() >= 0.02
    assert rig.decode.manager._loop.wait_s() >= 0.02
    rig.close()


# --- everything at once -----------------------------------------------------------------------------------------------


async def test_under_random_faults_every_block_is_right_or_refused_and_nothing_leaks(rig: Rig) -> None:
    dice = random.Random(7)
    keys = [key_of(number) for number in range(6)]
    slots = await rig.decode.manager.slots.acquire(6)
    payloads = dict(zip(keys, rig.decode.fill(slots), strict=True))
    await asyncio.gather(*rig.decode.manager.write_blocks([(k, ROOT, s) for k, s in zip(keys, slots, strict=True)]))
    manager, outcomes = rig.prefill.manager, {"ok": 0, "refused": 0}

    async def read(key: BlockKey) -> None:
        (slot,) = await manager.slots.acquire(1, 20.0)
        try:
            await manager.read_blocks([(key, slot)], deadline_s=dice.choice([0.002, 5.0]))[0]
            await asyncio.sleep(0)
            assert rig.prefill.payload(slot).tobytes() == payloads[key]
            outcomes["ok"] += 1
        except (StoreError, TransferError):
            outcomes["refused"] += 1
        finally:
            manager.slots.release([slot])
            manager.slots.check_integrity()

    async def faults() -> None:
        for _ in range(40):
            sick = dice.sample(keys, 2)
            dice.choice([rig.prefill.io.hang_reads, rig.prefill.io.fail_reads, rig.prefill.io.corrupt_reads])(sick)
            await asyncio.sleep(0.005)
            rig.prefill.io.unhang()
            rig.prefill.io.fail_reads([])
            rig.prefill.io.corrupt_reads([])

    chaos = asyncio.create_task(faults())
    await asyncio.gather(*(read(dice.choice(keys)) for _ in range(300)))
    await chaos
    assert outcomes["ok"] + outcomes["refused"] == 300
    assert outcomes["ok"] > 100
    wait_until(lambda: manager.slots.num_used == 0)
    assert manager.stats().num_in_flight == manager.stats().num_lingering == 0

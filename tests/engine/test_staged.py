"""Slots whose reads are late: where peers write them they are exchanged, all at once or with an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.traffic.rig import Rig, key_of, make_rig, wait_until

from dualpath.core.errors import DeadlineExceededError
from dualpath.core.ids import RequestId
from dualpath.core.runtime import SystemRuntime
from dualpath.engine.staged import StagedReads

REQUEST = RequestId("r")
BLOCKS = [(0, key_of(0)), (1, key_of(1)), (2, key_of(2))]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Eight slots; three blocks are stored, and reading two of them never ends."""
    rig = make_rig("fake", "memory", tmp_path, storage_deadline_s=0.02)
    keys, slots = [key for _, key in BLOCKS], rig.decode.take(3)
    rig.decode.write(keys, slots)
    rig.decode.manager.slots.release(slots)
    rig.decode.io.hang_reads(keys[1:])
    yield rig
    rig.close()


async def test_late_blocks_get_slots_that_nothing_can_touch(rig: Rig) -> None:
    staged = StagedReads(rig.decode.manager, 1.0, SystemRuntime(), is_written_by_peers=True)
    old = await staged.reserve(REQUEST, 3)
    outcome = await staged.read(REQUEST, BLOCKS)
    assert (outcome.ok, outcome.failed) == ({0}, {1, 2})
    assert staged.slots(REQUEST) == {0: old[0], **dict(outcome.moved_slots)}
    assert not set(old[1:]) & {slot for _, slot in outcome.moved_slots}
    staged.release(REQUEST)
    pool = rig.decode.manager.slots
    assert pool.num_used == 2, "the old ones are out of use"
    rig.decode.io.unhang()
    wait_until(lambda: pool.num_used == 0)


async def test_without_other_slots_it_is_an_error_and_none_has_moved(rig: Rig) -> None:
    staged = StagedReads(rig.decode.manager, 1.0, SystemRuntime(), is_written_by_peers=True)
    pool = rig.decode.manager.slots
    others = await pool.acquire(4)
    old = await staged.reserve(REQUEST, 3)
    with pytest.raises(DeadlineExceededError, match="2 blocks are late"):
        await staged.read(REQUEST, BLOCKS)
    assert staged.slots(REQUEST) == dict(enumerate(old))
    staged.release(REQUEST)
    pool.release(others)


async def test_slots_that_no_peer_writes_stay_and_nobody_waits_for_others(rig: Rig) -> None:
    staged = StagedReads(rig.decode.manager, 1.0, SystemRuntime(), is_written_by_peers=False)
    others = await rig.decode.manager.slots.acquire(5)
    old = await staged.reserve(REQUEST, 3)
    outcome = await staged.read(REQUEST, BLOCKS)
    assert (outcome.ok, outcome.failed, outcome.moved_slots) == ({0}, {1, 2}, ())
    assert staged.slots(REQUEST) == dict(enumerate(old))
    staged.release(REQUEST)
    rig.decode.manager.slots.release(others)

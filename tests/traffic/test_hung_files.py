"""A mount that hangs: its own reads reach their deadline, and nobody else notices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.traffic.rig import DECODE_PEER, key_of, make_rig, wait_until

from dualpath.core.errors import TransferTimeoutError
from dualpath.core.runtime import SystemRuntime
from dualpath.store.files.store import FileStore


class LeapingClock(SystemRuntime):
    """Tests move it on."""

    leapt_s = 0.0

    def now_s(self) -> float:
        return super().now_s() + self.leapt_s


def hang(store: FileStore, number: int) -> Path:
    """Opening a FIFO that nobody writes does not return."""
    path = Path(store.path_of(key_of(number)))
    path.unlink()
    os.mkfifo(path)
    return path


def test_a_read_that_hangs_in_open_times_out_and_other_work_goes_on(tmp_path: Path) -> None:
    clock = LeapingClock()
    rig = make_rig("nixl", "files", tmp_path, clock=clock, storage_deadline_s=50.0)
    prefill, store = rig.prefill, rig.store
    assert isinstance(store, FileStore)
    slots = prefill.take(4)
    contents = prefill.fill(slots)
    prefill.write([key_of(number) for number in range(4)], slots)
    fifo = hang(store, 1)

    hung, good = prefill.manager.read_blocks([(key_of(1), slots[1]), (key_of(2), slots[2])])
    assert good.future.result(5) > 0
    units = prefill.manager.staging_units(slots[:1], 0)
    assert prefill.manager.pull(DECODE_PEER, "staging", units, "staging", units).future.result(5) > 0
    prefill.write([key_of(9)], slots[3:])
    assert not hung.future.done()
    clock.leapt_s += 60.0
    assert prefill.io.stalled_s() >= 60.0
    with pytest.raises(TransferTimeoutError):
        hung.future.result(5)
    wait_until(hung.quiescent.done)  # an open touches no memory: the slot is free
    wait_until(lambda: prefill.manager.stats().storage_stalled_s == 0.0)  # that open hangs on, and nobody is to care
    again = prefill.manager.read_blocks([(key_of(0), slots[1])])
    again[0].future.result(5)
    assert prefill.payload(slots[1]).tobytes() == contents[0]
    rig.close()
    assert prefill.manager.stats().num_lingering == 0
    os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))  # lets the thread go

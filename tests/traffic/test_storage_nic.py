"""The emulated storage NIC: first come first served at its rate, each direction by itself."""

from __future__ import annotations

import pytest
from tests.traffic.rig import ManualClock

from dualpath.traffic.storage_nic import NicDirection, StorageNic

READ, WRITE = NicDirection.READ, NicDirection.WRITE


def test_transfers_queue_behind_each_other() -> None:
    clock = ManualClock()
    nic = StorageNic(100.0, clock)
    assert [nic.begin(READ, 50) - clock.time_s for _ in range(3)] == pytest.approx([0.5, 1.0, 1.5])


def test_directions_do_not_share() -> None:
    clock = ManualClock()
    nic = StorageNic(100.0, clock)
    nic.begin(READ, 1000)
    assert nic.begin(WRITE, 50) - clock.time_s == pytest.approx(0.5)


def test_an_idle_nic_saves_up_nothing() -> None:
    clock = ManualClock()
    nic = StorageNic(100.0, clock)
    nic.begin(READ, 50)
    clock.time_s += 10
    assert nic.begin(READ, 50) - clock.time_s == pytest.approx(0.5)


def test_a_cancelled_transfer_costs_those_after_it_nothing() -> None:
    clock = ManualClock()
    nic = StorageNic(100.0, clock)
    nic.begin(READ, 50)
    nic.begin(READ, 50)
    nic.cancel(READ, 50)
    assert nic.begin(READ, 50) - clock.time_s == pytest.approx(1.0)


def test_without_a_rate_nothing_waits_and_what_has_ended_is_counted() -> None:
    clock = ManualClock()
    nic = StorageNic(None, clock)
    assert nic.begin(READ, 1 << 40) == clock.time_s
    assert nic.passed_bytes(READ) == 0
    nic.end(READ, 7)
    nic.end(READ, 8)
    nic.end(WRITE, 1)
    assert nic.passed_bytes(READ) == 15
    assert nic.passed_bytes(WRITE) == 1


def test_bytes_pass_a_slow_nic_evenly() -> None:
    clock = ManualClock()
    nic = StorageNic(100.0, clock)
    nic.begin(READ, 150)
    nic.begin(READ, 50)
    passed = []
    for _ in range(5):
        passed.append(nic.passed_bytes(READ))
        clock.time_s += 0.5
    assert passed == [0, 50, 100, 150, 200]
    nic.begin(READ, 100)
    nic.cancel(READ, 100)
    assert nic.passed_bytes(READ) == 200
    assert nic.passed_bytes(WRITE) == 0


def test_a_rate_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        StorageNic(0.0, ManualClock())

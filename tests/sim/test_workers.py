"""Processes that simulate end with the work that they are for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import Future

import pytest

from dualpath.sim.workers import simulating_processes

LONG_S = 600.0


def _break_off(tasks: list[Future[None]]) -> None:
    with simulating_processes(2) as pool:
        tasks += [pool.submit(time.sleep, LONG_S) for _ in range(8)]
        raise KeyboardInterrupt


def test_what_is_broken_off_is_not_finished_first() -> None:
    """Ten minutes of work in each process and more in the line: far beyond this test's own deadline."""
    tasks: list[Future[None]] = []
    with pytest.raises(KeyboardInterrupt):
        _break_off(tasks)
    assert all(task.done() for task in tasks)
    assert not multiprocessing.active_children()


def test_ctrl_c_is_for_the_parent_alone() -> None:
    with simulating_processes(1) as pool:
        worker = pool.submit(os.getpid).result()
        os.kill(worker, signal.SIGINT)
        assert pool.submit(os.getpid).result() == worker
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not multiprocessing.active_children()

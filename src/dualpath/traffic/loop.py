"""The traffic thread: takes commands from a queue, polls what is in flight, and sleeps as long as it can afford.

The longer nothing has happened, the longer it waits between two looks (a quarter of that time, 20 us to 1 ms), so that
a small transfer is noticed at once and a slow one costs little. A new command ends any wait.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

from dualpath.core.errors import StoreError, TransferError
from dualpath.core.plan import Role
from dualpath.core.runtime import Clock
from dualpath.store.contract import StoreIo
from dualpath.traffic.contract import Transport
from dualpath.traffic.counters import Counters
from dualpath.traffic.jobs import Job, StorageJob
from dualpath.traffic.peer_lane import PeerLane
from dualpath.traffic.storage_lane import StorageLane
from dualpath.traffic.storage_nic import NicDirection, StorageNic
from dualpath.traffic.worker import Worker

R = TypeVar("R")
log = logging.getLogger(__name__)

NOT_RUNNING = "the traffic manager is not running"
_SPIN_S = 50e-6  # after an event, look again without waiting
_MIN_WAIT_S = 20e-6
_MIN_STORAGE_WAIT_S = 200e-6  # a look at many objects costs more, and they take longer
_MAX_WAIT_S = 1e-3
_EXPECTING_WAIT_S = 1e-3
_LINGERING_WAIT_S = 5e-3
_IDLE_WAIT_S = 50e-3  # how late an idle engine may notice a new peer's connection
_HURRY_S = 50e-3
_PR_SET_TIMERSLACK = 29


class TrafficLoop:
    """Thread and command queue of one traffic manager. ``submit``, ``call`` and ``expect`` from any thread."""

    def __init__(
        self,
        name: str,
        role: Role,
        transport: Transport,
        io: StoreIo,
        nic: StorageNic,
        clock: Clock,
        counters: Counters,
        on_span: Callable[[str, Job], None],
        max_reads_in_flight: int,
        max_writes_in_flight: int,
    ) -> None:
        self._transport, self._io, self._clock, self._counters = transport, io, clock, counters
        self._on_span = on_span
        self._hasher = Worker(f"{name}-hash")
        self.peers = PeerLane(transport, role, clock, counters, on_span)
        common = (nic, self._hasher, self._deliver, clock, self._is_hurried)
        self.reads = StorageLane(
            NicDirection.READ, io, io.submit_reads, *common, max_reads_in_flight, self._on_read_end
        )
        self.writes = StorageLane(
            NicDirection.WRITE, io, io.submit_writes, *common, max_writes_in_flight, self._on_write_end
        )
        self._lanes = (self.peers, self.reads, self.writes)
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"{name}-traffic", daemon=True)
        self._lock = threading.Lock()
        self._num_expecting = 0
        self._is_open = False  # takes new transfers
        self._closing_deadline_s: float | None = None
        self._is_quiet = True
        self._moved_at_s = 0.0  # perf_counter of the last event

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def num_active(self) -> int:
        return sum(lane.num_active for lane in self._lanes)

    @property
    def num_lingering(self) -> int:
        return sum(lane.num_lingering for lane in self._lanes)

    def start(self) -> None:
        self._hasher.start()
        self._thread.start()
        self._is_open = True

    def submit(self, jobs: Sequence[Job], command: Callable[[], None]) -> None:
        """Run ``command`` on the traffic thread; when that does not run (any more), fail the jobs instead."""
        with self._lock:
            if self._is_open:
                self._commands.put(command)
                return
        for job in jobs:
            job.fail(TransferError(NOT_RUNNING))

    def call(self, function: Callable[[], R]) -> R:
        """Run ``function`` on the traffic thread and wait for its result."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("the traffic thread cannot wait for itself")
        outcome: Future[R] = Future()

        def command() -> None:
            try:
                outcome.set_result(function())
            except Exception as error:
                outcome.set_exception(error)

        with self._lock:
            if not self._is_open:
                raise TransferError(NOT_RUNNING)
            self._commands.put(command)
        return outcome.result()

    def expect(self, change: int) -> None:
        with self._lock:
            self._num_expecting += change
        self._commands.put(_nothing)

    def close(self, deadline_s: float) -> bool:
        """Fail everything, wait for rest, stop. False: something may still write our memory."""
        with self._lock:
            self._is_open = False
        if self._thread.is_alive():
            self._commands.put(lambda: self._begin_close(deadline_s))
            self._thread.join()
        self._hasher.close()
        self._io.close()
        self._transport.close()
        return self._is_quiet

    def _deliver(self, call: Callable[[Exception | None], None], error: Exception | None) -> None:
        self._commands.put(lambda: call(error))

    def _begin_close(self, deadline_s: float) -> None:
        self._closing_deadline_s = time.monotonic() + deadline_s
        for lane in self._lanes:
            lane.fail_all(TransferError(NOT_RUNNING))

    def _run(self) -> None:
        _tighten_timers()
        while not self._is_finished():
            try:
                self._turn()
            except Exception:
                log.exception("traffic of %s: unexpected error, failing everything in flight", self._thread.name)
                for lane in self._lanes:
                    lane.fail_all(TransferError("internal error of the traffic manager"))

    def _turn(self) -> None:
        """One look at everything: the queue (waiting if nothing is urgent), transfers, peers."""
        moved = self._take_commands()
        for lane in self._lanes:
            moved = lane.step() or moved
        self._transport.progress()
        if moved:
            self._moved_at_s = time.perf_counter()

    def _take_commands(self) -> bool:
        """Run what is queued, after waiting for it where nothing is urgent. True when there was something."""
        wait_s = self._wait_s()
        num_taken = 0
        with suppress(Empty):
            command = self._commands.get(wait_s > 0, wait_s)
            while True:
                num_taken += 1
                command()
                command = self._commands.get_nowait()
        return num_taken > 0

    def _wait_s(self) -> float:
        """How long to wait for a command before the next look."""
        idle_s = time.perf_counter() - self._moved_at_s
        if self.peers.num_active or self.reads.num_startable or self.writes.num_startable:
            return 0.0 if idle_s < _SPIN_S else min(max(idle_s / 4, _MIN_WAIT_S), _MAX_WAIT_S)
        if self.reads.num_moving or self.writes.num_moving:
            return min(max(idle_s / 4, _MIN_STORAGE_WAIT_S), _MAX_WAIT_S)
        if self.reads.next_end_s() is not None or self.writes.next_end_s() is not None:
            return self._pacing_wait_s()
        if self._num_expecting:
            return _EXPECTING_WAIT_S
        return _LINGERING_WAIT_S if self.num_lingering else _IDLE_WAIT_S

    def _is_hurried(self) -> bool:
        """Transfers between engines are going on: a layer's compute may wait for one."""
        return self.peers.num_active > 0 or self._clock.now_s() - self.peers.posted_at_s < _HURRY_S

    def _pacing_wait_s(self) -> float:
        """Until the NIC's emulation releases the next block; at most a millisecond, for the clock may not be real."""
        ends_s = [end_s for end_s in (self.reads.next_end_s(), self.writes.next_end_s()) if end_s is not None]
        return min(max(min(ends_s) - self._clock.now_s(), 0.0), _MAX_WAIT_S)

    def _is_finished(self) -> bool:
        if self._closing_deadline_s is None:
            return False
        self._is_quiet = self.num_active + self.num_lingering == 0
        return self._is_quiet or time.monotonic() > self._closing_deadline_s

    def _on_read_end(self, job: StorageJob, error: Exception | None) -> None:
        self._counters.reads_ended += 1
        if job.has_moved:
            self._counters.storage_read_bytes += job.num_bytes
        if error is not None:
            self._counters.count_read_failure(error)
        self._on_span("storage read" if error is None else "storage read (failed)", job)

    def _on_write_end(self, job: StorageJob, error: Exception | None) -> None:
        if job.has_moved:
            self._counters.storage_write_bytes += job.num_bytes
        if error is not None:
            self._counters.blocks_not_persisted += 1
            if not isinstance(error, StoreError | TransferError):
                log.error("writing block %s: %r", job.request.key.hex(), error)
        self._on_span("storage write" if error is None else "storage write (failed)", job)


def _nothing() -> None:
    """A command that only ends a wait."""


def _tighten_timers() -> None:
    """Linux rounds this thread's short waits up by 50 us unless told otherwise."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)
    except (AttributeError, OSError):
        return

"""The traffic thread's work: takes commands from a queue, polls what is in flight, waits as long as it can afford.

The longer nothing has happened, the longer it waits between two looks (a quarter of that time, 20 us to 1 ms), so that
a small transfer is noticed at once and a slow one costs little. A new command ends any wait.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from dualpath.core.errors import BlockCorruptError, StoreError, TransferError
from dualpath.core.plan import Role
from dualpath.core.runtime import Command, Runtime
from dualpath.store.contract import StoreIo
from dualpath.traffic.contract import Transport
from dualpath.traffic.counters import Counters
from dualpath.traffic.jobs import PeerJob, StorageJob, TransferJob
from dualpath.traffic.peer_lane import PeerLane
from dualpath.traffic.storage_lane import StorageLane
from dualpath.traffic.storage_nic import NicDirection, StorageNic

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
_END_GRACE_S = 5.0  # beyond the deadline of closing: a call into a transport that does not return is left behind


class TrafficLoop:
    """Thread and command queue of one traffic manager. ``submit``, ``call`` and ``expect`` from any thread."""

    def __init__(
        self,
        name: str,
        role: Role,
        transport: Transport,
        io: StoreIo,
        nic: StorageNic,
        runtime: Runtime,
        counters: Counters,
        on_span: Callable[[str, TransferJob], None],
        run_check: Callable[[Callable[[], None], Callable[[Exception | None], None]], object],  # beside this thread
        max_reads_in_flight: int,
        max_writes_in_flight: int,
    ) -> None:
        self._name, self._transport, self._io, self._runtime = name, transport, io, runtime
        self._counters, self._on_span, self._run_check = counters, on_span, run_check
        self._hasher = runtime.worker(f"{name}-hash")
        self.peers = PeerLane(transport, role, runtime, counters, self._compare, on_span)
        common = (nic, self._hasher, self._deliver, runtime, self._is_hurried)
        self.reads = StorageLane(
            NicDirection.READ, io, io.submit_reads, *common, max_reads_in_flight, self._on_read_end
        )
        self.writes = StorageLane(
            NicDirection.WRITE, io, io.submit_writes, *common, max_writes_in_flight, self._on_write_end
        )
        self._lanes = (self.peers, self.reads, self.writes)
        self._driver = runtime.driver(f"{name}-traffic", self)
        self._is_started = False
        self._lock = threading.Lock()
        self._num_expecting = 0
        self._is_open = False  # takes new transfers
        self._closing_deadline_s: float | None = None
        self._is_quiet = True
        self._moved_at_s = 0.0  # the last event

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
        self._driver.start()
        self._is_started = self._is_open = True

    def submit(self, jobs: Sequence[TransferJob], command: Callable[[], None]) -> None:
        """Run ``command`` on the traffic thread; when that does not run (any more), fail the jobs instead."""
        with self._lock:
            if self._is_open:
                self._driver.put(command)
                return
        for job in jobs:
            job.fail(TransferError(NOT_RUNNING))

    def call(self, function: Callable[[], R]) -> R:
        """Run ``function`` on the traffic thread and wait for its result."""
        if self._driver.is_here:
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
            self._driver.put(command)
        return self._runtime.wait(outcome)

    def expect(self, change: int) -> None:
        with self._lock:
            self._num_expecting += change
        self._driver.put(_nothing)

    def close(self, deadline_s: float) -> bool:
        """Fail everything, wait for rest, stop. False: something may still write our memory."""
        with self._lock:
            self._is_open = False
        if self._is_started:
            self._driver.put(lambda: self._begin_close(deadline_s))
            try:
                self._runtime.wait(self._driver.ended, deadline_s + _END_GRACE_S)
            except TimeoutError:
                log.error("%s: traffic does not end; its memory is left behind", self._name)
                return False
        self._hasher.close(_END_GRACE_S)
        self._io.close()
        self._transport.close()
        return self._is_quiet

    def _deliver(self, call: Callable[[Exception | None], None], error: Exception | None) -> None:
        self._driver.put(lambda: call(error))

    def _begin_close(self, deadline_s: float) -> None:
        self._closing_deadline_s = self._runtime.now_s() + deadline_s
        for lane in self._lanes:
            lane.fail_all(TransferError(NOT_RUNNING))

    # -- turns (see ``core.runtime.Turns``) ------------------------------------------------------------------------

    def turn(self, commands: Sequence[Command]) -> None:
        """One look at everything: what is queued, transfers, peers."""
        moved = False
        for step in (*commands, *(lane.step for lane in self._lanes), self._transport.progress):
            try:
                moved = bool(step()) or moved
            except Exception:
                log.exception("%s: unexpected error, failing everything in flight", self._name)
                for lane in self._lanes:
                    lane.fail_all(TransferError("internal error of the traffic manager"))
        if moved or commands:
            self._moved_at_s = self._runtime.now_s()

    def wait_s(self) -> float:
        idle_s = self._runtime.now_s() - self._moved_at_s
        if self.peers.num_moving or self.reads.num_startable or self.writes.num_startable:
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
        return self.peers.num_moving > 0 or self._runtime.now_s() - self.peers.posted_at_s < _HURRY_S

    def _pacing_wait_s(self) -> float:
        """Until the NIC's emulation releases the next block; at most a millisecond, for the clock may not be real."""
        ends_s = [end_s for end_s in (self.reads.next_end_s(), self.writes.next_end_s()) if end_s is not None]
        return min(max(min(ends_s) - self._runtime.now_s(), 0.0), _MAX_WAIT_S)

    @property
    def is_idle(self) -> bool:
        return self.num_active + self.num_lingering == 0

    @property
    def is_finished(self) -> bool:
        if self._closing_deadline_s is None:
            return False
        self._is_quiet = self.is_idle
        return self._is_quiet or self._runtime.now_s() > self._closing_deadline_s

    def _compare(self, job: PeerJob, then: Callable[[PeerJob, Exception | None], None]) -> None:
        """What has arrived with what was sent, beside this thread; ``then`` here."""
        assert job.after is not None
        self._run_check(job.after, lambda error: self._deliver(lambda e: then(job, e), error))

    def _on_read_end(self, job: StorageJob, error: Exception | None) -> None:
        self._counters.reads_ended += 1
        if job.has_moved:
            self._counters.storage_read_bytes += job.num_bytes
        if error is not None:
            self._counters.count_read_failure(error)
        if job.ticket is not None:  # begun
            self._counters.read_latency.add(self._runtime.now_s() - job.start_s)
        self._on_span("storage read" if error is None else "storage read (failed)", job)

    def _on_write_end(self, job: StorageJob, error: Exception | None) -> None:
        if job.has_moved:
            self._counters.storage_write_bytes += job.num_bytes
        if error is not None:
            self._counters.blocks_not_persisted += 1
            self._counters.kv_corrupt += isinstance(error, BlockCorruptError)
            if not isinstance(error, StoreError | TransferError):
                log.error("writing block %s: %r", job.request.key.hex(), error)
        if job.ticket is not None:
            self._counters.write_latency.add(self._runtime.now_s() - job.start_s)
        self._on_span("storage write" if error is None else "storage write (failed)", job)


def _nothing() -> None:
    """A command that only ends a wait."""

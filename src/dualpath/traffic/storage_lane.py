"""One direction of storage traffic: a queue, a bounded number of objects under way, checksums beside them, deadlines.

Traffic thread only; the hash worker's results come back to it as commands. A read goes queue -> moving -> hashing ->
pacing, a write hashing -> queue -> moving -> pacing. A deadline counts from the moment when the object leaves the queue
and the NIC's emulation has served those before it: a long queue alone fails nothing.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count

from dualpath.core.clock import Clock
from dualpath.core.errors import StoreError, TransferTimeoutError
from dualpath.store.contract import IoRequest, IoState, IoTicket, StoreIo
from dualpath.traffic.jobs import StorageJob
from dualpath.traffic.storage_nic import NicDirection, StorageNic
from dualpath.traffic.worker import Worker

Deliver = Callable[[Callable[[Exception | None], None], Exception | None], None]
_MAX_CHUNK = 16  # objects submitted together, which costs less than one by one
_LONG_SUBMIT_S = (
    500e-6  # submitting may do I/O on the spot (page cache); transfers between engines must not wait for it
)


class StorageLane:
    def __init__(
        self,
        direction: NicDirection,
        io: StoreIo,
        submit: Callable[[Sequence[IoRequest]], Sequence[IoTicket]],
        nic: StorageNic,
        hasher: Worker,
        deliver: Deliver,  # runs a call on the traffic thread
        clock: Clock,
        max_in_flight: int,
        on_end: Callable[[StorageJob, Exception | None], None],
    ) -> None:
        self._direction, self._io, self._submit_io = direction, io, submit
        self._nic, self._hasher, self._deliver, self._clock = nic, hasher, deliver, clock
        self._max_in_flight, self._on_end = max_in_flight, on_end
        self._chunk = 4  # objects submitted together now
        self._queue: deque[StorageJob] = deque()
        self._moving: list[StorageJob] = []
        self._hashing: dict[StorageJob, None] = {}
        self._pacing: list[tuple[float, int, StorageJob]] = []  # a heap by earliest end
        self._lingering: list[StorageJob] = []
        self._in_flight = 0  # started and not yet ended
        self._order = count()

    @property
    def num_moving(self) -> int:
        return len(self._moving)

    @property
    def num_active(self) -> int:
        return len(self._queue) + len(self._moving) + len(self._hashing) + len(self._pacing)

    @property
    def num_lingering(self) -> int:
        return len(self._lingering)

    def next_end_s(self) -> float | None:
        """When the NIC's emulation lets the next object end."""
        return self._pacing[0][0] if self._pacing else None

    def add(self, jobs: Sequence[StorageJob]) -> None:
        for job in jobs:
            if job.before is None:
                self._queue.append(job)
            else:
                self._hash(job, job.before, self._prepared)

    def step(self) -> bool:
        """Advance everything once. True when something moved on."""
        now_s = self._clock.now_s()
        moved = False
        if self._moving:
            num_before = len(self._moving)
            self._moving = [job for job in self._moving if not self._has_moved(job) and not self._is_late(job, now_s)]
            moved = len(self._moving) < num_before
        while self._pacing and self._pacing[0][0] <= now_s:
            self._end(heapq.heappop(self._pacing)[2], None)
            moved = True
        if self._lingering:
            num_before = len(self._lingering)
            self._lingering = [job for job in self._lingering if not self._is_quiet(job)]
            moved = moved or len(self._lingering) < num_before
        return self._start() or moved

    def fail_all(self, error: Exception) -> None:
        """Fail what is under way; what can still touch memory lingers."""
        queued, self._queue = self._queue, deque()
        for job in queued:
            self._on_end(job, error)
            job.fail(error)
        moving, self._moving = self._moving, []
        for job in moving:
            self._linger(job, error)
        pacing, self._pacing = self._pacing, []
        for _, _, job in pacing:
            self._end(job, error)
        for job in self._hashing:
            job.abandon(error)  # the hash thread looks at its slot for a moment longer

    def _start(self) -> bool:
        """Start a few queued jobs if there is room. True when there were any."""
        room = self._max_in_flight - self._in_flight
        jobs = [self._queue.popleft() for _ in range(min(room, len(self._queue), self._chunk))]
        if not jobs:
            return False
        self._in_flight += len(jobs)
        try:
            tickets = self._submit([job.request for job in jobs])
        except Exception as error:  # against its contract; then nothing has begun
            for job in jobs:
                self._end(job, StoreError(f"block {job.request.key.hex()}: {error!r}"))
            return True
        now_s = self._clock.now_s()
        for job, ticket in zip(jobs, tickets, strict=True):
            job.ticket, job.start_s = ticket, now_s
            job.earliest_end_s = self._nic.begin(self._direction, job.num_bytes)
            job.deadline_at_s = job.earliest_end_s + job.deadline_s
        self._moving.extend(jobs)
        return True

    def _submit(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        """Submit, and find out how many objects may be submitted together without keeping peers waiting."""
        start_s = time.perf_counter()
        tickets = self._submit_io(requests)
        took_s = time.perf_counter() - start_s
        if took_s > _LONG_SUBMIT_S:
            self._chunk = max(1, self._chunk // 2)
        elif took_s < _LONG_SUBMIT_S / 4 and len(requests) == self._chunk:
            self._chunk = min(_MAX_CHUNK, self._chunk * 2)
        return tickets

    def _has_moved(self, job: StorageJob) -> bool:
        """Is the real transfer over? Then take the next step."""
        assert job.ticket is not None
        try:
            state = self._io.poll(job.ticket)
        except Exception as error:  # against its contract: who knows what still moves
            self._linger(job, StoreError(f"block {job.request.key.hex()}: {error!r}"))
            return True
        if state is IoState.IN_PROGRESS:
            return False
        self._io.release(job.ticket)
        if state is IoState.FAILED:
            self._nic.cancel(self._direction, job.num_bytes)
            self._end(job, job.ticket.error or StoreError(f"block {job.request.key.hex()}: the transfer failed"))
            return True
        job.has_moved = True
        if job.after is None:
            self._pace(job)
        else:
            self._hash(job, job.after, self._verified)
        return True

    def _hash(
        self, job: StorageJob, call: Callable[[], None], then: Callable[[StorageJob, Exception | None], None]
    ) -> None:
        self._hashing[job] = None
        self._hasher.run(call, lambda error: self._deliver(lambda e: self._hashed(job, e, then), error))

    def _hashed(
        self, job: StorageJob, error: Exception | None, then: Callable[[StorageJob, Exception | None], None]
    ) -> None:
        del self._hashing[job]
        then(job, error)

    def _prepared(self, job: StorageJob, error: Exception | None) -> None:
        """The header of an object to be written is filled in."""
        if error is not None or job.transfer.future.done():
            error = error or StoreError("given up")
            self._on_end(job, error)
            job.fail(error)
            return
        self._queue.append(job)

    def _verified(self, job: StorageJob, error: Exception | None) -> None:
        if error is not None or job.transfer.future.done():
            self._end(job, error)
        else:
            self._pace(job)

    def _pace(self, job: StorageJob) -> None:
        if job.earliest_end_s <= self._clock.now_s():
            self._end(job, None)
        else:
            heapq.heappush(self._pacing, (job.earliest_end_s, next(self._order), job))

    def _end(self, job: StorageJob, error: Exception | None) -> None:
        """The job is over and its memory at rest. Room for the next one."""
        self._in_flight -= 1
        if job.has_moved:
            self._nic.end(self._direction, job.num_bytes)
        self._on_end(job, error)
        if error is None:
            job.succeed()
        else:
            job.fail(error)

    def _is_late(self, job: StorageJob, now_s: float) -> bool:
        if now_s < job.deadline_at_s:
            return False
        text = f"block {job.request.key.hex()}: {self._direction.value} took longer than {job.deadline_s} s"
        self._linger(job, TransferTimeoutError(text))
        return True

    def _linger(self, job: StorageJob, error: Exception) -> None:
        """Nobody waits for it any more, and it takes nobody's place; but it may still touch its slot."""
        if self._is_quiet(job):
            self._end(job, error)
            return
        self._in_flight -= 1
        self._on_end(job, error)
        job.abandon(error)
        self._lingering.append(job)

    def _is_quiet(self, job: StorageJob) -> bool:
        assert job.ticket is not None
        try:
            if not self._io.release(job.ticket):
                return False
        except Exception:
            return False
        job.quiesce()
        return True

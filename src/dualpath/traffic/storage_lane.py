"""One direction of storage traffic: a queue, a bounded number of objects under way, checksums beside them, deadlines.

Traffic thread only; the hash worker's results come back to it as commands. A read goes queue -> moving -> hashing ->
pacing, a write hashing -> queue -> moving -> pacing. A deadline counts from the moment when the object leaves the queue
and the NIC's emulation has served those before it: a long queue alone fails nothing.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count

from dualpath.core.errors import StoreError, TransferTimeoutError
from dualpath.core.runtime import Clock, Worker
from dualpath.store.contract import IoRequest, IoState, IoTicket, StoreIo
from dualpath.traffic.jobs import StorageJob
from dualpath.traffic.storage_nic import NicDirection, StorageNic

Deliver = Callable[[Callable[[Exception | None], None], Exception | None], None]
Stage = Callable[[StorageJob], Callable[[], None] | None]
Outcome = Callable[[StorageJob, Exception | None], None]
# Objects submitted, and hashed, together: that costs less than one by one. But submitting may do the I/O on the spot
# (0.3 ms for 2 MiB from the page cache), and a transfer between engines would have to wait for it.
_CHUNK, _SHORT_CHUNK = 16, 4
_UNENDED_IN_A_LOOK = 8
_FULL_LOOK_EVERY = 8


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
        is_hurried: Callable[[], bool],  # other work waits for the traffic thread
        max_in_flight: int,
        on_end: Callable[[StorageJob, Exception | None], None],
    ) -> None:
        self._direction, self._io, self._submit_io = direction, io, submit
        self._nic, self._hasher, self._deliver, self._clock = nic, hasher, deliver, clock
        self._max_in_flight, self._is_hurried, self._on_end = max_in_flight, is_hurried, on_end
        self._queue: deque[StorageJob] = deque()
        self._moving: list[StorageJob] = []
        self._hashing: dict[StorageJob, None] = {}
        self._pacing: list[tuple[float, int, StorageJob]] = []  # a heap by earliest end
        self._lingering: list[StorageJob] = []
        self._in_flight = 0  # started and not yet ended
        self._order = count()
        self._looks = 0

    @property
    def num_moving(self) -> int:
        return len(self._moving)

    @property
    def num_startable(self) -> int:
        """Queued objects that there is room for."""
        return min(len(self._queue), self._max_in_flight - self._in_flight)

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
        """Take on jobs of one kind, all with ``before`` or all without."""
        if jobs[0].before is None:
            self._queue.extend(jobs)
        else:
            self._hash(jobs, lambda job: job.before, self._prepared)

    def step(self) -> bool:
        """Advance everything once. True when something moved on."""
        now_s = self._clock.now_s()
        moved = self._poll_moving(now_s)
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
        chunk = _SHORT_CHUNK if self._is_hurried() else _CHUNK
        jobs = [self._queue.popleft() for _ in range(min(self.num_startable, chunk))]
        if not jobs:
            return False
        self._in_flight += len(jobs)
        try:
            tickets = self._submit_io([job.request for job in jobs])
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

    def _poll_moving(self, now_s: float) -> bool:
        """Look at real transfers, now and then at all; what has arrived goes on together. True when any has ended."""
        num_before = len(self._moving)
        arrived: list[StorageJob] = []
        self._looks += 1
        if self._looks % _FULL_LOOK_EVERY == 0:
            still = [job for job in self._moving if not self._has_ended(job, arrived)]
            self._moving = [job for job in still if not self._is_late(job, now_s)]
        else:
            self._poll_oldest(arrived)
        if arrived and arrived[0].after is not None:
            self._hash(arrived, lambda job: job.after, self._verified)
        else:
            for job in arrived:
                self._pace(job)
        return len(self._moving) < num_before

    def _poll_oldest(self, arrived: list[StorageJob]) -> None:
        """Storage ends transfers about in order: once several in a row have not ended, hardly any behind them has."""
        still: list[StorageJob] = []
        for index, job in enumerate(self._moving):
            if len(still) == _UNENDED_IN_A_LOOK:
                still.extend(self._moving[index:])
                break
            if not self._has_ended(job, arrived):
                still.append(job)
        self._moving = still

    def _has_ended(self, job: StorageJob, arrived: list[StorageJob]) -> bool:
        """Is the real transfer over? A good one joins ``arrived``, a bad one is dealt with."""
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
        else:
            job.has_moved = True
            arrived.append(job)
        return True

    def _hash(self, jobs: Sequence[StorageJob], stage: Stage, then: Outcome) -> None:
        """Run a stage of each job on the hash thread, then ``then`` here; together, for hand-overs are what costs."""
        self._hashing.update(dict.fromkeys(jobs))
        errors: list[Exception | None] = []

        def call() -> None:
            errors.extend(_attempt(stage(job)) for job in jobs)

        def end(_: Exception | None) -> None:
            for job, error in zip(jobs, errors, strict=True):
                del self._hashing[job]
                then(job, error)

        self._hasher.run(call, lambda error: self._deliver(end, error))

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


def _attempt(call: Callable[[], None] | None) -> Exception | None:
    try:
        if call is not None:
            call()
    except Exception as error:
        return error
    return None

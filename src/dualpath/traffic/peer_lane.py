"""Transfers between engines: posted at once, polled until they end, abandoned at their deadline but never forgotten.

Traffic thread only. A transfer that passed its deadline, or whose peer was removed, fails for whoever waits and joins
the lingering ones; there it is polled until the transport says that no byte of it can move any more.
"""

from __future__ import annotations

from collections.abc import Callable

from dualpath.core.errors import PeerLostError, TransferError, TransferTimeoutError
from dualpath.core.ids import EngineId
from dualpath.core.plan import Role
from dualpath.core.runtime import Clock
from dualpath.traffic.contract import TransferState, Transport
from dualpath.traffic.counters import Counters, direction_of
from dualpath.traffic.jobs import PeerJob


class PeerLane:
    def __init__(
        self,
        transport: Transport,
        role: Role,
        clock: Clock,
        counters: Counters,
        on_span: Callable[[str, PeerJob], None],
    ) -> None:
        self._transport, self._role, self._clock = transport, role, clock
        self._counters, self._on_span = counters, on_span
        self._active: list[PeerJob] = []
        self._lingering: list[PeerJob] = []
        self.posted_at_s = float("-inf")  # when the last transfer began
        self._leaving: set[EngineId] = set()  # removed, but a transfer with them lingers

    @property
    def num_active(self) -> int:
        return len(self._active)

    @property
    def num_lingering(self) -> int:
        return len(self._lingering)

    def post(self, job: PeerJob) -> None:
        self.posted_at_s = job.start_s = self._clock.now_s()
        job.deadline_at_s = job.start_s + job.deadline_s
        try:
            if job.peer in self._leaving:
                raise PeerLostError(f"{job.peer} was removed")
            job.handle = self._transport.post(
                job.op, job.peer, job.local_region, job.local_units, job.remote_region, job.remote_units
            )
        except TransferError as error:
            job.fail(error)
            return
        if not self._check(job):
            self._active.append(job)

    def step(self) -> bool:
        """Poll everything once. True when something ended."""
        num_before = len(self._active) + len(self._lingering)
        if self._active:
            now_s = self._clock.now_s()
            self._active = [job for job in self._active if not self._check(job) and not self._is_late(job, now_s)]
        if self._lingering:
            self._lingering = [job for job in self._lingering if not self._is_quiet(job)]
            self._forget_leaving()
        return len(self._active) + len(self._lingering) < num_before

    def add_peer(self, metadata: bytes) -> EngineId:
        peer = self._transport.add_peer(metadata)
        self._leaving.discard(peer)
        return peer

    def remove_peer(self, peer: EngineId) -> None:
        self._leaving.add(peer)
        self._abandon([job for job in self._active if job.peer == peer], PeerLostError(f"{peer} was removed"))
        self._forget_leaving()

    def fail_all(self, error: TransferError) -> None:
        self._abandon(list(self._active), error)

    def _check(self, job: PeerJob) -> bool:
        """Has the transfer ended? Then tell whoever waits."""
        state = self._transport.poll(job.handle)
        if state is TransferState.IN_PROGRESS:
            return False
        error = self._transport.failure(job.handle) if state is TransferState.FAILED else None
        self._transport.release(job.handle)
        if error is not None:
            job.fail(error)
        else:
            self._count(job)
            job.succeed()
        self._on_span("copy" if self._is_copy(job) else job.op.value, job)
        return True

    def _count(self, job: PeerJob) -> None:
        if self._is_copy(job):
            self._counters.local_copy_bytes += job.num_bytes
        else:
            self._counters.kv_transfer_bytes[direction_of(self._role, job.op).value] += job.num_bytes

    def _is_copy(self, job: PeerJob) -> bool:
        """Host-device copies through the compute NIC are transfers with ourselves."""
        return job.peer == self._transport.engine_id

    def _is_late(self, job: PeerJob, now_s: float) -> bool:
        if now_s < job.deadline_at_s:
            return False
        text = f"{job.op.value} of {job.num_bytes} bytes with {job.peer} took longer than {job.deadline_s} s"
        self._linger(job, TransferTimeoutError(text))
        return True

    def _abandon(self, jobs: list[PeerJob], error: TransferError) -> None:
        self._active = [job for job in self._active if job not in jobs]
        for job in jobs:
            self._linger(job, error)

    def _linger(self, job: PeerJob, error: TransferError) -> None:
        self._on_span(f"{job.op.value} (abandoned)", job)
        if self._is_quiet(job):
            job.fail(error)
        else:
            job.abandon(error)
            self._lingering.append(job)

    def _is_quiet(self, job: PeerJob) -> bool:
        """Try to end an abandoned transfer. Its slots are free from then on."""
        self._transport.poll(job.handle)
        if not self._transport.release(job.handle):
            return False
        job.quiesce()
        return True

    def _forget_leaving(self) -> None:
        busy = {job.peer for job in self._lingering}
        for peer in self._leaving - busy:
            self._leaving.discard(peer)
            self._transport.remove_peer(peer)

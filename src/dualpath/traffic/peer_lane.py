"""Transfers between engines: posted at once, polled until they end, abandoned at their deadline but never forgotten.

Traffic thread only. A transfer that passed its deadline fails for whoever waits and joins the lingering ones; there it
is polled until it ends. One that failed is not at rest: its peer is removed at once, which ends everything with it on
our side. What pushes may still write over there is unsettled until somebody says that the peer is at rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dualpath.core.errors import PeerLostError, TransferError, TransferTimeoutError
from dualpath.core.ids import PeerId
from dualpath.core.plan import Role
from dualpath.core.runtime import Clock
from dualpath.traffic.contract import Op, TransferState, Transport
from dualpath.traffic.counters import Counters, direction_of
from dualpath.traffic.jobs import PeerJob

Outcome = Callable[[PeerJob, Exception | None], None]


class PeerLane:
    def __init__(
        self,
        transport: Transport,
        role: Role,
        clock: Clock,
        counters: Counters,
        check: Callable[[PeerJob, Outcome], None],  # runs ``job.after`` beside the traffic thread, the outcome on it
        on_span: Callable[[str, PeerJob], None],
    ) -> None:
        self._transport, self._role, self._clock = transport, role, clock
        self._counters, self._check, self._on_span = counters, check, on_span
        self._moving: dict[PeerJob, None] = {}
        self._checking: dict[PeerJob, None] = {}  # arrived, being compared with what was sent
        self._lingering: dict[PeerJob, None] = {}
        self._unsettled: dict[PeerId, list[PeerJob]] = {}  # ended badly: may still move until the peer is at rest
        self.posted_at_s = float("-inf")  # when the last transfer began

    @property
    def num_moving(self) -> int:
        return len(self._moving)

    @property
    def num_active(self) -> int:
        return len(self._moving) + len(self._checking)

    @property
    def num_lingering(self) -> int:
        """Transfers that nobody waits for any more, and that can touch our memory."""
        refused = (job for jobs in self._unsettled.values() for job in jobs if not job.transfer.quiescent.done())
        return len(self._lingering) + sum(1 for _ in refused)

    @property
    def peers(self) -> tuple[PeerId, ...]:
        return tuple(peer for peer in self._transport.peers if peer != self._transport.peer_id)

    @property
    def broken_peers(self) -> tuple[PeerId, ...]:
        return tuple(self._unsettled)

    def post(self, job: PeerJob) -> None:
        self.posted_at_s = job.start_s = self._clock.now_s()
        job.deadline_at_s = job.start_s + job.deadline_s
        try:
            job.handle = self._transport.post(
                job.op, job.peer, job.local_region, job.local_units, job.remote_region, job.remote_units
            )
        except TransferError as error:
            job.fail(error)
            return
        if not self._has_ended(job):
            self._moving[job] = None

    def step(self) -> bool:
        """Poll everything once. True when something ended."""
        num_before = len(self._moving) + len(self._lingering)
        now_s = self._clock.now_s()
        for lane in (self._moving, self._lingering):
            for job in tuple(lane):
                if job in lane and (self._has_ended(job) or (lane is self._moving and self._is_late(job, now_s))):
                    lane.pop(job, None)
        return len(self._moving) + len(self._lingering) < num_before

    def add_peer(self, metadata: bytes) -> PeerId:
        """Raises TransferError while pushes to the peer are unsettled: they could write what is given out next."""
        peer = self._transport.add_peer(metadata)
        if peer in self._unsettled:
            self._transport.remove_peer(peer)
            raise TransferError(f"{peer} has not come to rest; try again later")
        return peer

    def remove_peer(self, peer: PeerId) -> None:
        if problem := self._break(peer, (), PeerLostError(f"{peer} was removed")):
            raise problem

    def peer_at_rest(self, peer: PeerId) -> None:
        for job in self._unsettled.pop(peer, ()):
            job.settle()

    def fail_all(self, error: TransferError) -> None:
        """Tell everybody who waits, and let go of all peers with which something moves."""
        for job in self._checking:
            job.abandon(error)  # the hash thread looks at it for a moment longer
        for peer in dict.fromkeys(job.peer for job in (*self._moving, *self._lingering)):
            self._break(peer, (), error)

    def _has_ended(self, job: PeerJob) -> bool:
        """Is the transfer over? Then tell whoever waits."""
        state = self._transport.poll(job.handle)
        if state is TransferState.IN_PROGRESS:
            return False
        if state is TransferState.FAILED:
            self._break(job.peer, (job,), self._transport.failure(job.handle))
            return True
        self._transport.release(job.handle)
        if job.transfer.future.done():  # given up: nobody uses what has come
            job.settle()
            return True
        self._count(job)
        if job.after is None:
            self._arrived(job, None)
        else:
            self._checking[job] = None
            self._check(job, self._arrived)
        return True

    def _arrived(self, job: PeerJob, error: Exception | None) -> None:
        """All bytes are here, and what was to follow has been done; ``error``: but they are not as they were sent."""
        self._checking.pop(job, None)
        self._on_span("copy" if self._is_copy(job) else job.op.value, job)
        if error is None:
            job.succeed()
        else:
            job.fail(error)

    def _count(self, job: PeerJob) -> None:
        if self._is_copy(job):
            self._counters.local_copy_bytes += job.num_bytes
        else:
            self._counters.kv_transfer_bytes[direction_of(self._role, job.op).value] += job.num_bytes

    def _is_copy(self, job: PeerJob) -> bool:
        """Host-device copies through the compute NIC are transfers with ourselves."""
        return job.peer == self._transport.peer_id

    def _is_late(self, job: PeerJob, now_s: float) -> bool:
        if now_s < job.deadline_at_s:
            return False
        text = f"{job.op.value} of {job.num_bytes} bytes with {job.peer} took longer than {job.deadline_s} s"
        job.abandon(TransferTimeoutError(text))
        self._on_span(f"{job.op.value} (late)", job)
        self._lingering[job] = None
        return True

    def _break(self, peer: PeerId, failed: Sequence[PeerJob], error: TransferError) -> TransferError | None:
        """Nothing with the peer can be relied on: end it all on our side, and remember what may move on the other.

        Returns why the peer could not be removed; then our memory is not at rest either until it has been.
        """
        jobs = dict.fromkeys((*failed, *(j for j in (*self._moving, *self._lingering) if j.peer == peer)))
        problem: TransferError | None = None
        try:
            self._transport.remove_peer(peer)
        except TransferError as refused:
            problem = refused
        for job in jobs:
            self._moving.pop(job, None)
            self._lingering.pop(job, None)
            self._transport.poll(job.handle)
            self._transport.release(job.handle)
            self._on_span(f"{job.op.value} (failed)", job)
            if problem is None:
                job.quiesce()
            if job.op is Op.PULL and problem is None:
                job.settle()
            else:
                self._unsettled.setdefault(peer, []).append(job)
            job.abandon(error)
        if peer == self._transport.peer_id:
            self._transport.add_peer(self._transport.metadata())
        return problem

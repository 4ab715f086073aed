"""A transport without a network: memory copies within the process, after a delay on an injected clock, with faults.

Same contract as the real one, at its worst: what failed may go on moving until the side where it arrives has removed
the other. A ``FakeFabric`` connects the transports made from it and is where faults are ordered; bytes move when
somebody polls at or after their due time, or on a timer where the fabric is given one, so nothing here needs a thread.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from dualpath.core.errors import PeerLostError, TransferError
from dualpath.core.ids import PeerId
from dualpath.core.runtime import Clock, SystemRuntime
from dualpath.traffic.contract import Op, Region, TransferState, Units
from dualpath.traffic.copier import find_runs
from dualpath.traffic.cuda_copies import Run


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one transfer."""

    delay_s: float = 0.0  # beside the fabric's
    fails: bool = False
    late_s: Sequence[float | None] = ()  # when it ends badly: after how long each run moves all the same, cyclically
    num_moved: int = 0  # runs that have moved by then
    num_missing: int = 0  # of a transfer that says DONE: units at its end that never came
    flips: Sequence[int] = ()  # bits that arrive wrong, counted from the transfer's first byte, modulo its size


@dataclass(slots=True, eq=False)
class _Move:
    """A transfer as the fabric sees it, or what is left of one. ``regions`` keeps its memory alive."""

    op: Op
    initiator: PeerId
    peer: PeerId
    due_s: float
    runs: list[Run]
    regions: tuple[Region, Region]
    fate: Fate
    state: TransferState = TransferState.IN_PROGRESS
    error: TransferError | None = None
    is_cut: bool = False  # the side where it arrives takes no more of it

    @property
    def ends(self) -> tuple[PeerId, PeerId]:
        """(where it arrives, where it comes from)"""
        return (self.initiator, self.peer) if self.op is Op.PULL else (self.peer, self.initiator)


Judge = Callable[[Op, PeerId, PeerId, int], Fate]  # (what, initiator, peer, bytes) -> its fate
_FINE = Fate()
_NEVER = Fate(fails=True, late_s=(None,))


@dataclass(slots=True)
class _Late:
    due_s: float
    move: _Move
    run: Run


@dataclass(slots=True)
class _Faults:
    """By engine, at either end of a transfer; a name means every incarnation of it."""

    hung: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)


class FakeFabric:
    """Connects fake transports; any thread. Faults name an engine, or one incarnation of it.

    ``judge`` decides every transfer's fate when it is posted; ``at`` runs a call at a time of the clock.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        delay_s: float = 0.0,
        judge: Judge | None = None,
        at: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self.clock = clock or SystemRuntime()
        self.delay_s = delay_s
        self.judge = judge
        self._at = at
        self._lock = threading.RLock()
        self._regions: dict[PeerId, dict[str, Region]] = {}
        self._met: dict[PeerId, dict[PeerId, None]] = {}  # by side: whose transfers its memory takes part in
        self._moves: dict[_Move, None] = {}  # in progress
        self._late: list[_Late] = []  # of transfers that are over for whoever began them
        self._faults = _Faults()
        self.num_late = 0  # runs that moved after their transfer had failed

    def transport(self, peer_id: PeerId) -> FakeTransport:
        """A new engine's transport."""
        with self._lock:
            self._regions[peer_id], self._met[peer_id] = {}, {}
        return FakeTransport(self, peer_id)

    # -- faults -------------------------------------------------------------------------------------------------------

    def hang(self, engine: str) -> None:
        """Its transfers stay in progress, cannot be aborted, and go on late, after ``unhang``."""
        with self._lock:
            self._faults.hung.add(engine)

    def unhang(self, engine: str) -> None:
        with self._lock:
            self._faults.hung.discard(engine)

    def fail(self, engine: str, failing: bool = True) -> None:
        """Its transfers fail with TransferError, from now on or no longer."""
        with self._lock:
            (self._faults.failing.add if failing else self._faults.failing.discard)(engine)

    def detain(self, engine: str, late_s: float) -> bool:
        """Should it end now, what it is pushing arrives so late. False: it is pushing nothing."""
        with self._lock:
            moves = [move for move in self._moves if move.op is Op.PUSH and _is(engine, move.initiator)]
            for move in moves:
                move.fate = replace(move.fate, late_s=(late_s,))
            return bool(moves)

    def kill(self, engine: str) -> None:
        """The process is gone: transfers with it fail, its memory with it. What it has sent may still arrive."""
        with self._lock:
            for peer_id in [p for p in self._regions if _is(engine, p)]:
                del self._regions[peer_id], self._met[peer_id]
                for move in [m for m in self._moves if m.initiator == peer_id]:
                    self._end_badly(move, PeerLostError(f"{peer_id} is gone"))
            self._faults.hung.discard(engine)

    # -- what transports do -------------------------------------------------------------------------------------------

    def regions(self, peer_id: PeerId) -> dict[str, Region]:
        with self._lock:
            if peer_id not in self._regions:
                raise PeerLostError(f"{peer_id} is gone")
            return self._regions[peer_id]

    def introduce(self, side: PeerId, peer: PeerId) -> None:
        """``side`` adds ``peer``, and both know each other. Raises PeerLostError where either is gone."""
        with self._lock:
            self.regions(side), self.regions(peer)
            self._met[side][peer] = self._met[peer][side] = None

    def met(self, side: PeerId) -> tuple[PeerId, ...]:
        with self._lock:
            return tuple(self._met.get(side, ()))

    def begin(self, op: Op, initiator: PeerId, peer: PeerId, runs: list[Run], regions: tuple[Region, Region]) -> _Move:
        num_bytes = sum(num_bytes for *_, num_bytes in runs)
        fate = _FINE if self.judge is None else self.judge(op, initiator, peer, num_bytes)
        due_s = self.clock.now_s() + self.delay_s + fate.delay_s
        move = _Move(op, initiator, peer, due_s, runs, regions, fate)
        with self._lock:
            self._moves[move] = None
        return move

    def advance(self, move: _Move) -> TransferState:
        with self._lock:
            self.tick()
            if move.state is not TransferState.IN_PROGRESS or self._is_any(self._faults.hung, move):
                return move.state
            if move.is_cut or move.peer not in self._regions:
                self._end_badly(move, PeerLostError(f"{move.peer} is gone"))
            elif self._is_any(self._faults.failing, move):
                move.fate = _NEVER if not move.fate.fails else move.fate
                self._end_badly(move, TransferError("injected failure"))
            elif self.clock.now_s() >= move.due_s:
                if move.fate.fails:
                    self._end_badly(move, TransferError("injected failure"))
                else:
                    self._arrive(move)
            return move.state

    def abort(self, move: _Move) -> bool:
        with self._lock:
            if move.state is TransferState.IN_PROGRESS:
                if self._is_any(self._faults.hung, move):
                    return False
                self._end_badly(move, TransferError("aborted"))
            return True

    def cut(self, side: PeerId, peer: PeerId) -> None:
        """``side`` has removed ``peer``: nothing between them moves in its memory any more."""
        with self._lock:
            self.tick()
            self._met.get(side, {}).pop(peer, None)
            for move in list(self._moves):
                if {move.initiator, move.peer} != {side, peer}:
                    continue
                move.is_cut = move.is_cut or move.ends[0] == side
                if move.initiator == side:
                    self._end_badly(move, PeerLostError(f"{peer} was removed"))
            for late in self._late:
                late.move.is_cut = late.move.is_cut or late.move.ends == (side, peer)

    def tick(self) -> None:
        """Move what is late and due."""
        now_s = self.clock.now_s()
        due = [late for late in self._late if late.due_s <= now_s]
        self._late = [late for late in self._late if late.due_s > now_s]
        for late in due:
            if not late.move.is_cut and late.move.ends[0] in self._regions:
                self.num_late += 1
                _copy(late.run)

    def _arrive(self, move: _Move) -> None:
        unit_bytes, missing = move.regions[0].unit_bytes, move.fate.num_missing
        for source, target, num_bytes in reversed(move.runs):
            kept = max(0, num_bytes - missing * unit_bytes)
            missing -= (num_bytes - kept) // unit_bytes
            _copy((source, target, kept))
        for bit in move.fate.flips:
            _flip(move.runs, bit)
        move.state = TransferState.DONE
        del self._moves[move]

    def _end_badly(self, move: _Move, error: TransferError) -> None:
        """An error for whoever began it; the bytes do as they like."""
        move.error, move.state = error, TransferState.FAILED
        self._moves.pop(move, None)
        if move.is_cut or not move.fate.late_s:
            return
        for run in move.runs[: move.fate.num_moved]:
            _copy(run)
        for index, run in enumerate(move.runs[move.fate.num_moved :]):
            after_s = move.fate.late_s[index % len(move.fate.late_s)]
            if after_s is not None:
                due_s = self.clock.now_s() + after_s
                self._late.append(_Late(due_s, move, run))
                if self._at is not None:
                    self._at(due_s, self.tick)

    @staticmethod
    def _is_any(engines: set[str], move: _Move) -> bool:
        return any(_is(engine, end) for engine in engines for end in move.ends)


def _is(engine: str, peer_id: PeerId) -> bool:
    return engine in (peer_id, peer_id.rpartition(".")[0])


def _copy(run: Run) -> None:
    source, target, num_bytes = run
    ctypes.memmove(target, source, num_bytes)


def _flip(runs: Sequence[Run], bit: int) -> None:
    """Of the bytes that have arrived, in the order of their runs."""
    left = bit // 8 % sum(num_bytes for *_, num_bytes in runs)
    for _, target, num_bytes in runs:
        if left < num_bytes:
            ctypes.c_uint8.from_address(target + left).value ^= 1 << bit % 8
            return
        left -= num_bytes


class FakeTransport:
    """One engine's end of a ``FakeFabric``."""

    def __init__(self, fabric: FakeFabric, peer_id: PeerId) -> None:
        self.peer_id = peer_id
        self.agent: Any = None
        self._fabric = fabric
        self._own: dict[str, Region] = fabric.regions(peer_id)
        self._peers: dict[PeerId, None] = {}  # that we have added ourselves

    def register(self, region: Region) -> None:
        """Raises TransferError for device memory: this moves bytes by the CPU."""
        if region.storage.device.type != "cpu":
            raise TransferError(f"region {region.name!r} is on {region.storage.device}, and this transport has a CPU")
        self._own[region.name] = region

    def metadata(self) -> bytes:
        return msgspec.msgpack.encode(self.peer_id)

    def add_peer(self, metadata: bytes) -> PeerId:
        try:
            peer = PeerId(msgspec.msgpack.decode(metadata, type=str))
        except msgspec.DecodeError as error:
            raise TransferError(f"not a peer's metadata: {error}") from None
        self._fabric.introduce(self.peer_id, peer)
        self._peers[peer] = None
        return peer

    def remove_peer(self, peer: PeerId) -> None:
        self._peers.pop(peer, None)
        self._fabric.cut(self.peer_id, peer)

    @property
    def peers(self) -> tuple[PeerId, ...]:
        return self._fabric.met(self.peer_id)

    def post(
        self, op: Op, peer: PeerId, local_region: str, local_units: Units, remote_region: str, remote_units: Units
    ) -> _Move:
        if peer not in self._peers:
            raise PeerLostError(f"{peer} is not a peer of {self.peer_id}")
        if self.peer_id not in self._fabric.met(peer):
            raise PeerLostError(f"{peer} has removed {self.peer_id}")
        remote, local = self._fabric.regions(peer).get(remote_region), self._own[local_region]
        if remote is None or int(remote_units.max()) >= remote.num_units or int(remote_units.min()) < 0:
            raise TransferError(f"{peer} has no such units in region {remote_region!r}")
        near, far = local.addresses[local_units], remote.addresses[remote_units]
        source, target = (far, near) if op is Op.PULL else (near, far)
        runs = list(find_runs(source, target, local.unit_bytes))
        return self._fabric.begin(op, self.peer_id, peer, runs, (local, remote))

    def poll(self, handle: _Move) -> TransferState:
        return self._fabric.advance(handle)

    def failure(self, handle: _Move) -> TransferError:
        return handle.error or TransferError("failed")

    def release(self, handle: _Move) -> bool:
        return self._fabric.abort(handle)

    def progress(self) -> None: ...

    def close(self) -> None:
        self._fabric.kill(self.peer_id)

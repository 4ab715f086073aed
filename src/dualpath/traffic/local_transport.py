"""A transport for engines of one process: plain copies, by the CPU or by CUDA, on a thread of each engine.

For boxes without NIXL, and for measuring without it. Nothing leaves the process, so nothing can be lost on a wire; what
the contract asks of a removed peer holds because a copy runs under its engine's lock.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from dualpath.core.errors import PeerLostError, TransferError
from dualpath.core.ids import PeerId
from dualpath.core.runtime import Runtime
from dualpath.traffic.contract import Op, Region, TransferState, Units
from dualpath.traffic.copier import RegionCopies

_MARK = b"dualpath-local:"


@dataclass(slots=True, eq=False)
class _Copy:
    peer: PeerId
    source: Region
    source_units: Units
    target: Region
    target_units: Units
    state: TransferState = TransferState.IN_PROGRESS
    error: TransferError | None = None

    def fail(self, error: TransferError) -> None:
        if self.state is TransferState.IN_PROGRESS:
            self.error, self.state = error, TransferState.FAILED


class LocalNetwork:
    """Connects the local transports that are made from it. Any thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()
        self._transports: dict[PeerId, LocalTransport] = {}

    def transport(self, peer_id: PeerId) -> LocalTransport:
        made = LocalTransport(self, peer_id, self._runtime)
        with self._lock:
            self._transports[peer_id] = made
        return made

    def find(self, peer_id: PeerId) -> LocalTransport:
        with self._lock:
            found = self._transports.get(peer_id)
        if found is None:
            raise PeerLostError(f"{peer_id} is not in this process")
        return found

    def remove(self, peer_id: PeerId) -> None:
        with self._lock:
            self._transports.pop(peer_id, None)


class LocalTransport:
    """One engine's; see the contract."""

    def __init__(self, network: LocalNetwork, peer_id: PeerId, runtime: Runtime) -> None:
        self.peer_id = peer_id
        self.agent: Any = None
        self.regions: dict[str, Region] = {}
        self.met: dict[PeerId, None] = {}  # who may move bytes in our memory, and we in theirs
        self._network = network
        self._worker = runtime.worker(f"{peer_id}-local")
        self._lock = threading.Lock()  # held while a copy of ours runs
        self._copies: dict[_Copy, None] = {}  # not over
        self._mover = RegionCopies()

    def register(self, region: Region) -> None:
        self.regions[region.name] = region

    def metadata(self) -> bytes:
        return _MARK + self.peer_id.encode()

    def add_peer(self, metadata: bytes) -> PeerId:
        if not metadata.startswith(_MARK):
            raise TransferError("not a peer's metadata: it is no engine of this process")
        peer = PeerId(metadata.removeprefix(_MARK).decode())
        other = self._network.find(peer)
        self.met[peer] = other.met[self.peer_id] = None
        return peer

    def remove_peer(self, peer: PeerId) -> None:
        self.met.pop(peer, None)
        self.end_copies(peer)
        try:
            self._network.find(peer).end_copies(self.peer_id)
        except PeerLostError:
            return

    def end_copies(self, peer: PeerId) -> None:
        """Fail our copies with it; on return none runs. Any thread."""
        with self._lock:
            for copy in [copy for copy in self._copies if copy.peer == peer]:
                copy.fail(PeerLostError(f"{peer} was removed"))
                del self._copies[copy]

    @property
    def peers(self) -> tuple[PeerId, ...]:
        return tuple(self.met)

    def post(
        self, op: Op, peer: PeerId, local_region: str, local_units: Units, remote_region: str, remote_units: Units
    ) -> _Copy:
        if peer not in self.met:
            raise PeerLostError(f"{peer} is not a peer of {self.peer_id}")
        other = self._network.find(peer)
        if self.peer_id not in other.met:
            raise PeerLostError(f"{peer} has removed {self.peer_id}")
        near, far = self.regions[local_region], other.regions.get(remote_region)
        if far is None or int(remote_units.max()) >= far.num_units or int(remote_units.min()) < 0:
            raise TransferError(f"{peer} has no such units in region {remote_region!r}")
        if near.unit_bytes != far.unit_bytes:
            raise TransferError(f"units of {near.unit_bytes} bytes here, {far.unit_bytes} at {peer}")
        ends = (far, remote_units, near, local_units) if op is Op.PULL else (near, local_units, far, remote_units)
        copy = _Copy(peer, *ends)
        with self._lock:
            if (
                peer not in self.met or self.peer_id not in other.met
            ):  # removed since: whoever did has looked for copies
                raise PeerLostError(f"{peer} was removed")
            self._copies[copy] = None
        self._worker.run(lambda: self._carry_out(copy), lambda error: self._end(copy, error))
        return copy

    def poll(self, handle: _Copy) -> TransferState:
        return handle.state

    def failure(self, handle: _Copy) -> TransferError:
        return handle.error or TransferError(f"a copy to or from {handle.peer} failed")

    def release(self, handle: _Copy) -> bool:
        """One that has not begun never will; one that runs is waited for: it takes milliseconds."""
        with self._lock:
            self._copies.pop(handle, None)
            handle.fail(TransferError("aborted"))
        return True

    def progress(self) -> None:
        """Copies need nobody's help."""

    def close(self) -> None:
        self._network.remove(self.peer_id)
        for peer in self.peers:
            self.remove_peer(peer)
        self._worker.close()

    def _carry_out(self, copy: _Copy) -> None:
        with self._lock:
            if copy in self._copies:
                self._mover.copy(copy.source, copy.source_units, copy.target, copy.target_units)
                del self._copies[copy]
                copy.state = TransferState.DONE

    def _end(self, copy: _Copy, error: Exception | None) -> None:
        if error is not None:
            with self._lock:
                self._copies.pop(copy, None)
                copy.fail(error if isinstance(error, TransferError) else TransferError(f"local copy failed: {error}"))

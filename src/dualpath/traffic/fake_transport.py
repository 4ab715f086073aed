"""A transport without a network: memory copies within the process, after a delay on an injected clock, with faults.

Same contract as the real one. A ``FakeFabric`` connects the transports made from it and is where faults are ordered; a
transfer's bytes move when its initiator polls it at or after its due time, so nothing here needs a thread.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from dualpath.core.errors import PeerLostError, TransferError
from dualpath.core.ids import EngineId
from dualpath.core.runtime import Clock, SystemRuntime
from dualpath.traffic.contract import Op, Region, TransferState, Units
from dualpath.traffic.copier import find_runs


@dataclass(slots=True, eq=False)
class _FakeHandle:
    peer: EngineId
    due_s: float
    move: Callable[[], None]
    state: TransferState = TransferState.IN_PROGRESS
    error: TransferError | None = None


class FakeFabric:
    """Connects fake transports. Faults name an engine and concern every transfer with it at either end; any thread."""

    def __init__(self, clock: Clock | None = None, *, delay_s: float = 0.0) -> None:
        self.clock = clock or SystemRuntime()
        self.delay_s = delay_s
        self._lock = threading.RLock()
        self._regions: dict[EngineId, dict[str, Region]] = {}
        self._hung: set[EngineId] = set()
        self._failing: set[EngineId] = set()

    def transport(self, engine_id: EngineId) -> FakeTransport:
        """A new engine's transport; also how a dead engine comes back."""
        with self._lock:
            self._regions[engine_id] = {}
        return FakeTransport(self, engine_id)

    def hang(self, engine_id: EngineId) -> None:
        """Its transfers stay in progress, cannot be aborted, and go on late, after ``unhang``."""
        with self._lock:
            self._hung.add(engine_id)

    def unhang(self, engine_id: EngineId) -> None:
        with self._lock:
            self._hung.discard(engine_id)

    def fail(self, engine_id: EngineId, failing: bool = True) -> None:
        """Its transfers fail with TransferError, from now on or no longer."""
        with self._lock:
            (self._failing.add if failing else self._failing.discard)(engine_id)

    def kill(self, engine_id: EngineId) -> None:
        """The engine is gone: its transfers fail with PeerLostError, nothing moves."""
        with self._lock:
            self._regions.pop(engine_id, None)
            self._hung.discard(engine_id)

    def regions(self, engine_id: EngineId) -> dict[str, Region]:
        with self._lock:
            if engine_id not in self._regions:
                raise PeerLostError(f"{engine_id} is gone")
            return self._regions[engine_id]

    def advance(self, handle: _FakeHandle, initiator: EngineId) -> TransferState:
        with self._lock:
            ends = {initiator, handle.peer}
            if handle.state is not TransferState.IN_PROGRESS or ends & self._hung:
                return handle.state
            if handle.peer not in self._regions:
                handle.error, handle.state = PeerLostError(f"{handle.peer} is gone"), TransferState.FAILED
            elif ends & self._failing:
                handle.error, handle.state = TransferError("injected failure"), TransferState.FAILED
            elif self.clock.now_s() >= handle.due_s:
                handle.move()
                handle.state = TransferState.DONE
            return handle.state

    def abort(self, handle: _FakeHandle, initiator: EngineId) -> bool:
        with self._lock:
            if handle.state is TransferState.IN_PROGRESS:
                if {initiator, handle.peer} & self._hung:
                    return False
                handle.error, handle.state = TransferError("aborted"), TransferState.FAILED
            return True


class FakeTransport:
    """One engine's end of a ``FakeFabric``."""

    def __init__(self, fabric: FakeFabric, engine_id: EngineId) -> None:
        self.engine_id = engine_id
        self.agent: Any = None
        self._fabric = fabric
        self._own: dict[str, Region] = fabric.regions(engine_id)
        self._peers: set[EngineId] = set()

    def register(self, region: Region) -> None:
        self._own[region.name] = region

    def metadata(self) -> bytes:
        return msgspec.msgpack.encode(self.engine_id)

    def add_peer(self, metadata: bytes) -> EngineId:
        try:
            peer = EngineId(msgspec.msgpack.decode(metadata, type=str))
        except msgspec.DecodeError as error:
            raise TransferError(f"not a peer's metadata: {error}") from None
        self._fabric.regions(peer)
        self._peers.add(peer)
        return peer

    def remove_peer(self, peer: EngineId) -> None:
        self._peers.discard(peer)

    def post(
        self, op: Op, peer: EngineId, local_region: str, local_units: Units, remote_region: str, remote_units: Units
    ) -> _FakeHandle:
        if peer not in self._peers:
            raise PeerLostError(f"{peer} is not a peer of {self.engine_id}")
        remote, local = self._fabric.regions(peer).get(remote_region), self._own[local_region]
        if remote is None or int(remote_units.max()) >= remote.num_units or int(remote_units.min()) < 0:
            raise TransferError(f"{peer} has no such units in region {remote_region!r}")
        near, far = local.addresses[local_units], remote.addresses[remote_units]
        source, target = (far, near) if op is Op.PULL else (near, far)

        def move() -> None:
            for source_address, target_address, num_bytes in find_runs(source, target, local.unit_bytes):
                ctypes.memmove(target_address, source_address, num_bytes)

        return _FakeHandle(peer, self._fabric.clock.now_s() + self._fabric.delay_s, move)

    def poll(self, handle: _FakeHandle) -> TransferState:
        return self._fabric.advance(handle, self.engine_id)

    def failure(self, handle: _FakeHandle) -> TransferError:
        return handle.error or TransferError("failed")

    def release(self, handle: _FakeHandle) -> bool:
        return self._fabric.abort(handle, self.engine_id)

    def progress(self) -> None: ...

    def close(self) -> None:
        self._fabric.kill(self.engine_id)

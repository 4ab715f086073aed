"""The real transport: one NIXL agent per engine, Layer Blocks by one-sided reads and writes over UCX.

Every region's descriptors are prepared once, per peer for the peers', and a transfer only picks indexes. What UCX runs
on (RDMA, TCP, shared memory) is the user's choice by UCX's own environment variables (``UCX_TLS``,
``UCX_NET_DEVICES``); unset, UCX takes the fastest there is. We only set ``UCX_ERROR_SIGNALS`` to nothing unless it is
set, so that UCX leaves the process's signal handlers alone.

A posted transfer is never aborted: nothing tells when an abort has taken effect on the wire. It lasts until NIXL
reports an end, good or bad; a peer that is stopped, not dead, may keep it, and its memory, for as long as it stays so.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dualpath.core.errors import PeerLostError, TransferError
from dualpath.core.ids import EngineId
from dualpath.store.nixl_api import build_agent, nixl_api
from dualpath.traffic.contract import Op, Region, TransferState, Units
from dualpath.traffic.staging import DEVICE

_BACKEND = "UCX"
_OPERATIONS = {Op.PULL: "READ", Op.PUSH: "WRITE"}
_METADATA_VERSION = 1


class _RegionTable(msgspec.Struct, array_like=True):
    """A region's units as runs of neighbours: int64 [n, 2] of (address, units)."""

    name: str
    memory_type: str
    device_id: int
    unit_bytes: int
    runs: bytes


class _Metadata(msgspec.Struct, array_like=True):
    version: int
    engine_id: str
    agent: bytes
    regions: list[_RegionTable]


@dataclass(slots=True)
class _Side:
    """Prepared descriptors of one region."""

    dlist: Any
    num_units: int
    unit_bytes: int


@dataclass(slots=True)
class _Peer:
    metadata: bytes
    sides: dict[str, _Side]


@dataclass(slots=True, eq=False)
class _Handle:
    peer: EngineId
    transfer: Any
    state: TransferState = TransferState.IN_PROGRESS
    error: TransferError | None = field(default=None)


class NixlTransport:
    """One engine's agent. One thread at a time; see the contract. Raises ConfigError where NIXL is not usable.

    ``backends``: more than UCX only to save the store's I/O from creating its own; it does when it opens.
    """

    def __init__(self, engine_id: EngineId, backends: Sequence[str] = (_BACKEND, "POSIX")) -> None:
        os.environ.setdefault("UCX_ERROR_SIGNALS", "")
        self.engine_id = engine_id
        self.agent: Any = build_agent(engine_id, backends)
        self._regions: dict[str, _RegionTable] = {}
        self._own: dict[str, _Side] = {}
        self._registrations: list[Any] = []
        self._memory: list[Region] = []
        self._peers: dict[EngineId, _Peer] = {}
        self._num_active: Counter[EngineId] = Counter()  # handles not yet released

    def register(self, region: Region) -> None:
        tensor = region.storage
        memory_type, device_id = ("VRAM", tensor.device.index or 0) if tensor.is_cuda else ("DRAM", 0)
        # Storage reads and writes go by the staging buffer alone; peers reach everything.
        backends = [_BACKEND] if region.name == DEVICE else []
        entry = (tensor.data_ptr(), tensor.numel(), device_id, "")
        try:
            self._registrations.append(self.agent.register_memory([entry], memory_type, backends))
        except Exception as error:  # the binding's exceptions share no public base class
            raise TransferError(f"NIXL cannot register {tensor.numel()} bytes of {memory_type}: {error!r}") from error
        self._memory.append(region)
        runs = _find_runs(region.addresses, region.unit_bytes)
        table = _RegionTable(region.name, memory_type, device_id, region.unit_bytes, runs.tobytes())
        self._regions[region.name] = table
        self._own[region.name] = self._prepare("NIXL_INIT_AGENT", table)

    def metadata(self) -> bytes:
        tables = list(self._regions.values())
        return msgspec.msgpack.encode(
            _Metadata(_METADATA_VERSION, self.engine_id, self.agent.get_agent_metadata(), tables)
        )

    def add_peer(self, metadata: bytes) -> EngineId:
        try:
            decoded = msgspec.msgpack.decode(metadata, type=_Metadata)
        except msgspec.DecodeError as error:
            raise TransferError(f"not a peer's metadata: {error}") from None
        if decoded.version != _METADATA_VERSION:
            raise TransferError(f"{decoded.engine_id} speaks version {decoded.version}, we speak {_METADATA_VERSION}")
        peer = EngineId(decoded.engine_id)
        known = self._peers.get(peer)
        if known is not None and known.metadata == metadata:
            return peer
        if self._num_active[peer]:
            raise TransferError(f"transfers with the former {peer} have not come to rest; try again later")
        self.remove_peer(peer)
        try:
            if peer != self.engine_id:  # with ourselves, for copies through the NIC, NIXL needs no introduction
                self.agent.add_remote_agent(decoded.agent)
            sides = {table.name: self._prepare(peer, table) for table in decoded.regions}
        except Exception as error:
            raise PeerLostError(f"NIXL cannot reach {peer}: {error!r}") from error
        self._peers[peer] = _Peer(metadata, sides)
        return peer

    def remove_peer(self, peer: EngineId) -> None:
        known = self._peers.pop(peer, None)
        if known is None:
            return
        for side in known.sides.values():
            side.dlist.release()
        if peer == self.engine_id:
            return
        try:
            self.agent.remove_remote_agent(peer)
        except Exception as error:
            raise TransferError(f"NIXL cannot forget {peer}: {error!r}") from error

    def post(
        self, op: Op, peer: EngineId, local_region: str, local_units: Units, remote_region: str, remote_units: Units
    ) -> _Handle:
        local, remote = self._own[local_region], self._remote(peer, remote_region)
        if int(remote_units.max()) >= remote.num_units or int(remote_units.min()) < 0:
            raise TransferError(f"{peer}'s region {remote_region!r} has only {remote.num_units} units")
        if local.unit_bytes != remote.unit_bytes:
            raise TransferError(f"units of {local.unit_bytes} bytes here, {remote.unit_bytes} at {peer}")
        try:
            transfer = self.agent.make_prepped_xfer(
                _OPERATIONS[op], local.dlist, local_units, remote.dlist, remote_units
            )
        except Exception as error:
            raise _explain(error, peer) from error
        handle = _Handle(peer, transfer)
        self._num_active[peer] += 1
        try:
            self._note(handle, self.agent.transfer(transfer))
        except Exception as error:
            handle.error, handle.state = _explain(error, peer), TransferState.FAILED
        return handle

    def poll(self, handle: _Handle) -> TransferState:
        if handle.state is TransferState.IN_PROGRESS:
            try:
                self._note(handle, self.agent.check_xfer_state(handle.transfer))
            except Exception as error:
                handle.error, handle.state = _explain(error, handle.peer), TransferState.FAILED
        return handle.state

    def failure(self, handle: _Handle) -> TransferError:
        return handle.error or TransferError(f"a transfer with {handle.peer} failed")

    def release(self, handle: _Handle) -> bool:
        if handle.state is TransferState.IN_PROGRESS:
            return False
        if handle.transfer is not None:
            transfer, handle.transfer = handle.transfer, None
            self._num_active[handle.peer] -= 1
            try:
                transfer.release()
            except Exception as error:
                handle.error = _explain(error, handle.peer)
        return True

    def progress(self) -> None:
        self.agent.get_new_notifs()

    def close(self) -> None:
        for peer in list(self._peers):
            if not self._num_active[peer]:
                self.remove_peer(peer)
        self._peers.clear()
        for side in self._own.values():
            side.dlist.release()
        for registration in self._registrations:
            self.agent.deregister_memory(registration)
        self._registrations.clear()
        self._own.clear()
        # The native agent goes, with its endpoints and descriptors, whoever still holds the Python object around it.
        self.agent.agent = None
        self.agent = None

    def _remote(self, peer: EngineId, region: str) -> _Side:
        known = self._peers.get(peer)
        if known is None:
            raise PeerLostError(f"{peer} is not a peer of {self.engine_id}")
        if region not in known.sides:
            raise TransferError(f"{peer} has no region {region!r}")
        return known.sides[region]

    def _prepare(self, agent_name: str, table: _RegionTable) -> _Side:
        runs = np.frombuffer(table.runs, dtype=np.int64).reshape(-1, 2)
        rows = np.empty((len(runs), 5), dtype=np.uint64)  # address, bytes, device, stride, count
        rows[:, 0], rows[:, 4] = runs[:, 0], runs[:, 1]
        rows[:, 1] = rows[:, 3] = table.unit_bytes
        rows[:, 2] = table.device_id
        dlist = self.agent.prep_xfer_dlist(agent_name, rows, table.memory_type, [_BACKEND])
        return _Side(dlist, int(runs[:, 1].sum()), table.unit_bytes)

    @staticmethod
    def _note(handle: _Handle, status: str) -> None:
        if status == "DONE":
            handle.state = TransferState.DONE
        elif status != "PROC":
            handle.error, handle.state = TransferError(f"NIXL reports {status}"), TransferState.FAILED


def _find_runs(addresses: npt.NDArray[np.int64], unit_bytes: int) -> npt.NDArray[np.int64]:
    """Units that follow each other without a gap, as rows of (address of the first, number of units)."""
    starts = np.flatnonzero(np.concatenate([[True], np.diff(addresses) != unit_bytes]))
    return np.stack([addresses[starts], np.diff(np.append(starts, len(addresses)))], axis=1)


def _explain(error: Exception, peer: EngineId) -> TransferError:
    lost = getattr(nixl_api().nixlBind, "nixlRemoteDisconnectError", None)
    if lost is not None and isinstance(error, lost):
        return PeerLostError(f"{peer} is gone")
    return TransferError(f"a transfer with {peer} failed: {error!r}")

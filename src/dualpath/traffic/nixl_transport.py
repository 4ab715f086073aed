"""The real transport: one NIXL agent per peer, Layer Blocks by one-sided reads and writes over UCX.

Every region's descriptors are prepared once, per peer for the peers', and a transfer only picks indexes. What UCX runs
on (RDMA, TCP, shared memory) is the user's choice by UCX's own environment variables (``UCX_TLS``,
``UCX_NET_DEVICES``); unset, UCX takes the fastest there is. Two of them are set unless they are: ``UCX_ERROR_SIGNALS``
to nothing, so that UCX leaves the process's signal handlers alone, and ``UCX_TCP_SYN_CNT``, since UCX waits for
connections to be made.

Nothing tells when a transfer that failed or was aborted comes to rest on the wire; only destroying an agent ends what
moves through it (``PeerAgent``). So each peer has its own, made when we add the peer or when it adds us.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from dualpath.core.errors import PeerLostError, TransferError
from dualpath.core.ids import PeerId
from dualpath.store.nixl_api import build_agent
from dualpath.traffic.contract import Op, Region, TransferState, Units
from dualpath.traffic.nixl_hello import Hello, HelloChannel
from dualpath.traffic.nixl_peer_agent import BACKEND, PeerAgent
from dualpath.traffic.nixl_peers import METADATA_VERSION, Handle, Metadata, Peer
from dualpath.traffic.nixl_regions import RegionTable
from dualpath.traffic.staging import STAGING

_log = logging.getLogger(__name__)
_POLLS_PER_HELLO = 1000


class NixlTransport:
    """One engine's transport. One thread at a time; see the contract. Raises ConfigError where NIXL is not usable.

    ``remove_peer`` holds what the contract says for everything that comes over a network or through a queue, in a few
    milliseconds and whatever the peer does. Between processes on one host UCX takes CMA, where the initiator writes the
    target's memory itself: there only its own ``remove_peer``, or the end of its process, ends what it pushes.

    ``backends``: more than UCX only to save the store's I/O from creating its own; it does when it opens. ``ucx``:
    parameters of NIXL's UCX backend.
    """

    def __init__(
        self, peer_id: PeerId, backends: Sequence[str] = (BACKEND, "POSIX"), ucx: Mapping[str, str] | None = None
    ) -> None:
        os.environ.setdefault("UCX_ERROR_SIGNALS", "")
        if not ucx:
            os.environ.setdefault("UCX_TCP_SYN_CNT", "2")  # a silent host costs 7 s, not 2 minutes
        self.peer_id = peer_id
        self._ucx = {BACKEND: dict(ucx or {})}
        self.agent: Any = build_agent(peer_id, backends, self._ucx)  # for hellos and the store's I/O
        self._hellos = HelloChannel(self.agent, peer_id)
        self._numbers = itertools.count(1)
        self._regions: list[tuple[Region, RegionTable]] = []
        self._registrations: list[Any] = []
        self._peers: dict[PeerId, Peer] = {}
        self._heard: dict[PeerId, int] = {}  # highest number of an agent that this peer has made for us

    def register(self, region: Region) -> None:
        table = RegionTable.of(region)
        if region.name == STAGING:  # storage reads and writes go by the staging buffer alone
            self._register_for_storage(region, table)
        self._regions.append((region, table))

    def metadata(self) -> bytes:
        tables = [table for _, table in self._regions]
        return msgspec.msgpack.encode(Metadata(METADATA_VERSION, self.peer_id, self.agent.get_agent_metadata(), tables))

    def add_peer(self, metadata: bytes) -> PeerId:
        try:
            decoded = msgspec.msgpack.decode(metadata, type=Metadata)
        except msgspec.DecodeError as error:
            raise TransferError(f"not a peer's metadata: {error}") from None
        if decoded.version != METADATA_VERSION:
            raise TransferError(f"{decoded.peer_id} speaks version {decoded.version}, we speak {METADATA_VERSION}")
        peer = PeerId(decoded.peer_id)
        known = self._peers.get(peer)
        if known is not None and known.has_left:
            self.remove_peer(peer)
            known = None
        if known is not None and known.metadata not in (None, metadata):
            raise TransferError(f"{peer} has other memory than before: not the same peer")
        known = known or self._open(peer, decoded.main_agent)
        try:
            self._learn(known, metadata, {table.name: table for table in decoded.regions})
            if not known.their_number:
                self._connect_itself(known) if peer == self.peer_id else self._say_hello(peer, known)
        except TransferError:
            self.remove_peer(peer)
            raise
        return peer

    def remove_peer(self, peer: PeerId) -> None:
        known = self._peers.pop(peer, None)
        if known is None:
            return
        known.fail_all(PeerLostError(f"{peer} was removed"))
        known.agent.destroy()
        for handle in known.handles:
            handle.transfer = None
        self._hellos.say_disconnected(peer, known.number)

    @property
    def peers(self) -> tuple[PeerId, ...]:
        return tuple(self._peers)

    def post(
        self, op: Op, peer: PeerId, local_region: str, local_units: Units, remote_region: str, remote_units: Units
    ) -> Handle:
        """Where the peer has not answered our hello yet, the transfer begins when it does."""
        self._hear()  # who has left this process says so, and UCX would not notice
        known = self._reachable(peer)
        remote = known.regions.get(remote_region)
        if remote is None:
            raise TransferError(f"{peer} has no region {remote_region!r}")
        if int(remote_units.max()) >= remote.num_units or int(remote_units.min()) < 0:
            raise TransferError(f"{peer}'s region {remote_region!r} has only {remote.num_units} units")
        local = known.agent.own[local_region]
        if local.unit_bytes != remote.unit_bytes:
            raise TransferError(f"units of {local.unit_bytes} bytes here, {remote.unit_bytes} at {peer}")
        handle = Handle(peer, op, local_region, local_units, remote_region, remote_units)
        if known.their_number:
            self._begin(known, handle)
        known.handles.add(handle)
        return handle

    def poll(self, handle: Handle) -> TransferState:
        if handle.state is not TransferState.IN_PROGRESS:
            return handle.state
        known = self._peers[handle.peer]
        if handle.transfer is None:
            self._poll_waiting(known, handle)
        else:
            self._note(handle, known.agent.check)
        return handle.state

    def failure(self, handle: Handle) -> TransferError:
        return handle.error or TransferError(f"a transfer with {handle.peer} failed")

    def release(self, handle: Handle) -> bool:
        if handle.state is TransferState.IN_PROGRESS:
            return False
        known = self._peers.get(handle.peer)
        if known is not None and handle in known.handles:
            known.handles.discard(handle)
            if handle.transfer is not None:
                known.agent.release(handle.transfer)
        handle.transfer = None
        return True

    def progress(self) -> None:
        self._hear()
        for known in self._peers.values():
            known.agent.progress()

    def close(self) -> None:
        for peer in list(self._peers):
            self.remove_peer(peer)
        for registration in self._registrations:
            with suppress(Exception):
                self.agent.deregister_memory(registration)
        self._registrations.clear()
        # The native agent goes, with its connections and descriptors, whoever still holds the Python object around it.
        self.agent.agent = None
        self.agent = None
        self._hellos.close()

    # --- transfers ------------------------------------------------------------------------------------------------

    def _reachable(self, peer: PeerId) -> Peer:
        known = self._peers.get(peer)
        if known is None or known.metadata is None:
            raise PeerLostError(f"{peer} is not a peer of {self.peer_id}")
        if known.has_left:
            raise PeerLostError(f"{peer} has removed {self.peer_id}")
        return known

    def _begin(self, known: Peer, handle: Handle) -> None:
        """Raises TransferError or PeerLostError, and then nothing moves."""
        local, remote = known.agent.own[handle.local_region], known.agent.remote[handle.remote_region]
        handle.transfer = known.agent.start(handle.op, local, handle.local_units, remote, handle.remote_units)
        self._note(handle, known.agent.post)

    def _poll_waiting(self, known: Peer, handle: Handle) -> None:
        handle.num_polls += 1
        try:
            if handle.num_polls % _POLLS_PER_HELLO == 0:
                self._say_hello(handle.peer, known)
        except PeerLostError as error:
            handle.fail(error)
        self._hear()

    @staticmethod
    def _note(handle: Handle, call: Any) -> None:
        try:
            handle.state = call(handle.transfer)
        except TransferError as error:
            handle.fail(error)

    def _register_for_storage(self, region: Region, table: RegionTable) -> None:
        backends = [name for name in self.agent.backends if name != BACKEND]
        if not backends:
            return
        entry = (region.storage.data_ptr(), region.storage.numel(), table.device_id, "")
        try:
            self._registrations.append(self.agent.register_memory([entry], table.memory_type, backends))
        except Exception as error:  # the binding's exceptions share no public base class
            raise TransferError(f"NIXL cannot register {region.storage.numel()} bytes: {error!r}") from error

    # --- meeting peers --------------------------------------------------------------------------------------------

    def _open(self, peer: PeerId, main_agent: bytes) -> Peer:
        number = next(self._numbers)
        agent = PeerAgent(_agent_name(self.peer_id, peer, number), peer, self._regions, self._ucx)
        known = self._peers[peer] = Peer(agent, number, main_agent, self._heard.get(peer, 0))
        return known

    def _learn(self, known: Peer, metadata: bytes, regions: dict[str, RegionTable]) -> None:
        if known.metadata is None:
            known.metadata, known.regions = metadata, regions
            if known.their_number:
                known.agent.prepare(list(regions.values()))

    def _connect_itself(self, known: Peer) -> None:
        known.agent.connect_itself()
        known.their_number = known.number
        known.agent.prepare(list(known.regions.values()))

    def _say_hello(self, peer: PeerId, known: Peer) -> None:
        self._hellos.say(peer, known.main_agent, known.number, known.agent.metadata(), known.their_number)

    def _hear(self) -> None:
        for peer, hello in self._hellos.hear():
            try:
                self._take_hello(peer, hello)
            except TransferError as error:
                _log.warning("%s cannot connect with %s: %s", self.peer_id, peer, error)

    def _take_hello(self, peer: PeerId, hello: Hello) -> None:
        known = self._peers.get(peer)
        if not hello.agent:
            if known is not None and known.is_left_by(hello.number):
                known.has_left = True
                known.fail_all(PeerLostError(f"{peer} has removed {self.peer_id}"))
            return
        if known is None:
            if hello.number <= self._heard.get(peer, 0):
                return  # said before we removed it
            known = self._open(peer, hello.main_agent)
        self._heard[peer] = max(hello.number, self._heard.get(peer, 0))
        if hello.number > known.their_number:
            self._connect(peer, known, hello)
        if hello.seen != known.number and hello.number == known.their_number:
            self._say_hello(peer, known)

    def _connect(self, peer: PeerId, known: Peer, hello: Hello) -> None:
        """With the peer's agent for us, or a later one: what began with the former will not end well."""
        for handle in known.handles:
            if handle.transfer is not None:
                handle.fail(PeerLostError(f"{peer} has begun anew"))
        known.their_number = 0
        known.agent.connect(_agent_name(peer, self.peer_id, hello.number), hello.agent)
        known.agent.prepare(list(known.regions.values()))
        known.their_number, known.has_left = hello.number, False
        for handle in known.handles:
            if handle.transfer is None and handle.state is TransferState.IN_PROGRESS:
                try:
                    self._begin(known, handle)
                except TransferError as error:
                    handle.fail(error)


def _agent_name(whose: PeerId, peer: PeerId, number: int) -> str:
    return f"{whose}>{peer}#{number}"

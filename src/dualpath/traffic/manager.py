"""The traffic manager: one per engine, the only one that moves KV bytes, all of it asynchronous and with deadlines.

One thread owns the transport (a NIXL agent, which is not thread-safe) and the store's I/O, and does nothing but post
and poll; checksums, digests and local copies run on three helper threads. Everybody else submits and gets a
``Transfer``. An idle manager blocks on its queue; one whose peers may be moving bytes polls every millisecond
(``expecting_peers``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from dualpath.core.errors import TransferError
from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey, EngineId, NodeId, PeerId
from dualpath.core.plan import Role
from dualpath.core.runtime import Runtime
from dualpath.store.contract import StoreIo
from dualpath.traffic.contract import Op, Region, Transfer, Transport, Units
from dualpath.traffic.copier import Copier
from dualpath.traffic.counters import Counters, TrafficStats
from dualpath.traffic.cuda_copies import pin, unpin
from dualpath.traffic.digests import Checks
from dualpath.traffic.jobs import PeerJob, Trace, TransferJob
from dualpath.traffic.loop import NOT_RUNNING, TrafficLoop
from dualpath.traffic.memory import EngineMemory
from dualpath.traffic.staging import device_region
from dualpath.traffic.storage_nic import NicDirection, StorageNic

B = TypeVar("B")
_SUBMIT_BLOCKS = 16
_CHECKS_END_S = 5.0
_unquiet_memory: list[EngineMemory] = []  # of managers that closed while something could still write it: never freed


class TrafficManager:
    """Owns an engine's transport, staging buffer and transfers. All methods are thread-safe unless they say otherwise.

    Deadlines: one of a peer transfer counts from submission; one of a storage transfer from the moment when the block
    leaves the queue and the NIC's emulation has served those before it. After a deadline the transfer raises
    TransferTimeoutError and its slots stay out of use until ``Transfer.quiescent``. That covers transfers which this
    manager initiated; whether a peer still moves bytes in or out of a slot, only the peer knows.
    """

    def __init__(
        self,
        *,
        engine_id: EngineId,
        node_id: NodeId,
        role: Role,
        geometry: KvGeometry,
        namespace_digest: bytes,
        num_slots: int,
        num_write_slots: int,
        transport: Transport,
        open_io: Callable[[Transport], StoreIo],
        storage_nic: StorageNic,
        runtime: Runtime,
        copies_by_nic: bool = False,
        storage_deadline_s: float = 30.0,
        transfer_deadline_s: float = 30.0,
        max_reads_in_flight: int = 64,
        max_writes_in_flight: int = 16,
    ) -> None:
        self.engine_id, self.node_id, self.role, self.geometry = engine_id, node_id, role, geometry
        self.peer_id = transport.peer_id
        self._memory = EngineMemory(geometry, namespace_digest, num_slots, num_write_slots, runtime)
        self._staging = self._memory.staging
        self.slots = self._memory.slots  # for prompts
        self.write_slots = self._memory.write_slots  # for persistence, so that writes never wait for prompts
        self.trace: Trace | None = None  # called on traffic threads with every ended transfer's span
        self._runtime = runtime
        self._storage_deadline_s, self._transfer_deadline_s = storage_deadline_s, transfer_deadline_s
        self._transport, self._storage_nic = transport, storage_nic
        self._copies_by_nic = copies_by_nic
        self._counters = Counters()
        self.checks = Checks(engine_id, runtime, self._memory, self._counters)
        self._copier = Copier(f"{engine_id}-copy", runtime, self._counters, self._span)
        io = self._io = open_io(transport)  # before registration: memory is registered with the backends that exist
        transport.register(self._staging.region)
        transport.register(self._staging.headers)
        self._loop = TrafficLoop(
            engine_id,
            role,
            transport,
            io,
            storage_nic,
            runtime,
            self._counters,
            self._span,
            self.checks.run,
            max_reads_in_flight,
            max_writes_in_flight,
        )
        self._lock = threading.Lock()
        self._metadata: bytes | None = None
        self._is_closed = False

    # --- memory ---------------------------------------------------------------------------------------------------

    def staging_units(self, slots: Units | Sequence[int], layer: int) -> Units:
        """Units of one layer in each of these staging slots, ours or a peer's of the same geometry."""
        return self._staging.units(slots, layer)

    def staging_units_all_layers(self, slot: int) -> Units:
        return self._staging.units_all_layers(slot)

    def slot_view(self, slot: int) -> memoryview:
        """A slot's object, header and payload. Whoever holds the slot may look when no transfer touches it."""
        return self._staging.object_view(slot)

    def register_device(self, tensor: torch.Tensor) -> None:
        """Make ``uint8 [..., layer_block_bytes]``, contiguous, on CPU or CUDA, region "device". Before ``start``."""
        self.register_region(device_region(tensor, self.geometry.layer_block_bytes))

    def register_region(self, region: Region) -> None:
        """Memory that somebody else has laid out; its units must lie at multiples of their size. Before ``start``."""
        self._memory.add(region)
        if region.storage.is_cuda:
            pin(self._staging.region.storage, region.storage.device)
        with torch.cuda.device(region.storage.device) if region.storage.is_cuda else nullcontext():
            self._transport.register(region)

    def register_pages(self, num_pages: int) -> None:
        """Make region "pages": headers that come from a peer's region "headers", or go there. Before ``start``."""
        self._transport.register(self._memory.add_pages(num_pages))

    def page(self, number: int) -> memoryview:
        return self._memory.page(number)

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._metadata = self._transport.metadata()
        self._loop.start()
        if (device := self._memory.cuda_device) is not None:
            self._loop.call(partial(torch.cuda.set_device, device))  # UCX takes the context of the thread that it is on
        if self._copies_by_nic:
            self.add_peer(self._metadata)  # transfers with ourselves

    def close(self, deadline_s: float = 5.0) -> None:
        """Fail everything in flight, wait up to ``deadline_s`` for it to come to rest, end all threads, free memory.

        Memory that something can still write after that is kept for the life of the process. Idempotent.
        """
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self.slots.close()
        self.write_slots.close()
        is_quiet = self._loop.close(deadline_s)
        self._copier.close()
        self.checks.close(_CHECKS_END_S)
        if not is_quiet:
            _unquiet_memory.append(self._memory)
        elif (device := self._memory.cuda_device) is not None:
            unpin(self._staging.region.storage, device)

    # --- peers ----------------------------------------------------------------------------------------------------

    def metadata(self) -> bytes:
        """What peers need to reach our memory. After ``start``."""
        if self._metadata is None:
            raise TransferError("the traffic manager has not been started")
        return self._metadata

    def add_peer(self, metadata: bytes) -> PeerId:
        """Learn a peer. Blocks for milliseconds: a worker's or ``to_thread``'s thread, so not in a callback.

        Raises TransferError while pushes to it that failed are not known to be at rest.
        """
        return self._loop.call(lambda: self._loop.peers.add_peer(metadata))

    def remove_peer(self, peer: PeerId) -> None:
        """Forget a peer; transfers with it fail with PeerLostError. Blocks like ``add_peer``.

        On return nothing that it began, and none of our transfers with it, moves in our memory any more.
        """
        self._loop.call(lambda: self._loop.peers.remove_peer(peer))

    def peer_at_rest(self, peer: PeerId) -> None:
        """Nothing that was pushed to the removed peer moves there any more: it says so, or it is gone."""
        self._loop.call(lambda: self._loop.peers.peer_at_rest(peer))

    @contextmanager
    def expecting_peers(self) -> Iterator[None]:
        """Poll actively while this is held: peers may be moving bytes in or out of our memory."""
        self._loop.expect(1)
        try:
            yield
        finally:
            self._loop.expect(-1)

    def pull(
        self,
        peer: PeerId,
        local_region: str,
        local_units: Units,
        remote_region: str,
        remote_units: Units,
        deadline_s: float | None = None,
        after: Callable[[], None] | None = None,
    ) -> Transfer[int]:
        """Bring a peer's units into ours, one by one. The value is the number of bytes.

        ``after`` runs on a helper thread when all have arrived, before the transfer ends; it raises ``checks.corrupt``
        where they are not right.
        """
        return self._move(Op.PULL, peer, local_region, local_units, remote_region, remote_units, deadline_s, after)

    def push(
        self,
        peer: PeerId,
        local_region: str,
        local_units: Units,
        remote_region: str,
        remote_units: Units,
        deadline_s: float | None = None,
    ) -> Transfer[int]:
        """Write our units into a peer's, one by one."""
        return self._move(Op.PUSH, peer, local_region, local_units, remote_region, remote_units, deadline_s)

    # --- storage --------------------------------------------------------------------------------------------------

    def read_blocks(
        self,
        blocks: Sequence[tuple[BlockKey, int]],
        deadline_s: float | None = None,
        *,
        namespace_digest: bytes = b"",
    ) -> list[Transfer[int]]:
        """Read each (key, slot) from storage, in this order, and verify it before its transfer completes.

        They are of our own namespace, or of the one that is named.

        A transfer raises BlockMissingError, BlockCorruptError, another StoreError, or TransferTimeoutError.
        """
        deadline_s = self._storage_deadline_s if deadline_s is None else deadline_s
        self._memory.hold_slots([slot for _, slot in blocks])
        with self._lock:
            self._counters.reads_submitted += len(blocks)
        transfers: list[Transfer[int]] = []
        for chunk in self._chunks(blocks):
            jobs = [self._memory.read_job(key, slot, deadline_s, namespace_digest) for key, slot in chunk]
            self._loop.submit(jobs, partial(self._loop.reads.add, jobs))
            transfers.extend(job.transfer for job in jobs)
        return transfers

    def write_blocks(
        self,
        blocks: Sequence[tuple[BlockKey, BlockKey, int]],
        deadline_s: float | None = None,
        *,
        have_headers: bool = False,
        namespace_digest: bytes = b"",
    ) -> list[Transfer[int]]:
        """Write each (key, parent's key, slot). The header is filled in on the way; where slots ``have_headers``, only
        a block that fits its own is written.

        The slot must not change until the transfer is quiescent. A transfer raises StoreError or TransferTimeoutError.
        """
        deadline_s = self._storage_deadline_s if deadline_s is None else deadline_s
        self._memory.hold_slots([slot for *_, slot in blocks])
        transfers: list[Transfer[int]] = []
        for chunk in self._chunks(blocks):
            jobs = [
                self._memory.write_job(*block, deadline_s, has_header=have_headers, namespace_digest=namespace_digest)
                for block in chunk
            ]
            self._loop.submit(jobs, partial(self._loop.writes.add, jobs))
            transfers.extend(job.transfer for job in jobs)
        return transfers

    # --- local ----------------------------------------------------------------------------------------------------

    def copy(
        self,
        src_region: str,
        src_units: Units,
        dst_region: str,
        dst_units: Units,
        after: Callable[[], None] | None = None,
    ) -> Transfer[int]:
        """Copy between our own regions, by the copier or through the compute NIC. Copies may overtake each other.

        ``after`` as in ``pull``.

        By the NIC as well, a copy has no deadline: device memory is used again when a copy has failed, so failure must
        mean that it has ended.
        """
        source, src_units = self._memory.select(src_region, src_units, len(dst_units))
        target, dst_units = self._memory.select(dst_region, dst_units, len(src_units))
        holds = self._memory.hold_units((source, src_units), (target, dst_units))
        if self._copies_by_nic:
            loop = PeerJob(
                num_bytes=len(src_units) * source.unit_bytes,
                deadline_s=float("inf"),
                holds=holds,
                op=Op.PULL,
                peer=self.peer_id,
                local_region=dst_region,
                local_units=dst_units,
                remote_region=src_region,
                remote_units=src_units,
                after=after,
            )
            return self._post(loop)
        job = TransferJob(num_bytes=len(src_units) * source.unit_bytes, holds=holds)
        if not len(src_units):
            job.succeed()
        elif not self._loop.is_open or not self._copier.submit(job, source, src_units, target, dst_units, after):
            job.fail(TransferError(NOT_RUNNING))
        return job.transfer

    def stats(self) -> TrafficStats:
        c = self._counters
        num_reading = c.reads_submitted - c.reads_ended
        return TrafficStats(
            storage_read_bytes=c.storage_read_bytes,
            storage_write_bytes=c.storage_write_bytes,
            kv_transfer_bytes=dict(c.kv_transfer_bytes),
            local_copy_bytes=c.local_copy_bytes,
            blocks_missing=c.blocks_missing,
            blocks_corrupt=c.blocks_corrupt,
            blocks_failed=c.blocks_failed,
            blocks_not_persisted=c.blocks_not_persisted,
            kv_corrupt=c.kv_corrupt,
            read_queue_tokens=num_reading * self.geometry.block_tokens,
            num_in_flight=self._loop.num_active,
            num_lingering=self._loop.num_lingering,
            peers=self._loop.peers.peers,
            broken_peers=self._loop.peers.broken_peers,
            storage_stalled_s=self._io.stalled_s(),
            storage_read_latency=c.read_latency.snapshot(),
            storage_write_latency=c.write_latency.snapshot(),
            nic_read_bytes=self._storage_nic.passed_bytes(NicDirection.READ),
        )

    def _move(
        self,
        op: Op,
        peer: PeerId,
        local_region: str,
        local_units: Units,
        remote_region: str,
        remote_units: Units,
        deadline_s: float | None,
        after: Callable[[], None] | None = None,
    ) -> Transfer[int]:
        region, local_units = self._memory.select(local_region, local_units, len(remote_units))
        job = PeerJob(
            num_bytes=len(local_units) * region.unit_bytes,
            deadline_s=self._transfer_deadline_s if deadline_s is None else deadline_s,
            holds=self._memory.hold_units((region, local_units)),
            op=op,
            peer=peer,
            local_region=local_region,
            local_units=local_units,
            remote_region=remote_region,
            remote_units=np.ascontiguousarray(remote_units, dtype=np.int32),
            after=after,
        )
        return self._post(job)

    def _post(self, job: PeerJob) -> Transfer[int]:
        if len(job.local_units):
            self._loop.submit([job], lambda: self._loop.peers.post(job))
        else:
            job.succeed()
        return job.transfer

    def _span(self, name: str, job: TransferJob) -> None:
        if self.trace is not None:
            self.trace(name, job.start_s, self._runtime.now_s(), {"bytes": job.num_bytes})

    def _chunks(self, blocks: Sequence[B]) -> Iterator[Sequence[B]]:
        """A few blocks at a time: the first are on their way while the others' handles are still being made."""
        for start in range(0, len(blocks), _SUBMIT_BLOCKS):
            if start:
                self._runtime.give_way()  # to the traffic thread
            yield blocks[start : start + _SUBMIT_BLOCKS]

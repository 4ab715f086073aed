"""The contract of a block store: where Full Blocks live, and how an engine's traffic manager reads and writes them.

A store has two faces. ``BlockStore`` lists, stats and deletes blocks, for the block index, the CLI and the scheduler
process; it is thread-safe and may block. ``BlockDirectory`` is as much of it as needs no listing and is not of one
namespace. ``StoreIo`` moves bytes between storage and registered
staging memory for one engine; every call comes from that engine's traffic thread and none may block for long.

A stored object is ``HEADER_BYTES`` of header followed by the Full Block's payload (see dualpath.store.header).
Staging slots have the same shape, so one descriptor moves a whole object. The payload is not verified here: whoever
reads calls ``dualpath.store.header.verify`` before the first use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import BlockKey
from dualpath.core.runtime import Runtime


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """What listing tells of one object."""

    key: BlockKey
    num_bytes: int
    modified_unix_s: float


class IoState(Enum):
    IN_PROGRESS = "in_progress"
    DONE = "done"
    FAILED = "failed"


class IoTicket(Protocol):
    """One block on its way. ``error`` is set when the state is FAILED (BlockMissingError, BlockCorruptError,
    StoreError).
    """

    key: BlockKey
    error: Exception | None


@dataclass(frozen=True, slots=True)
class IoRequest:
    """Move one object between ``key`` and ``[address, address + num_bytes)`` of the registered staging memory."""

    key: BlockKey
    address: int
    num_bytes: int  # header + payload
    namespace_digest: bytes = b""  # none: the store's own


class StoreIo(Protocol):
    """Moves objects. Single-threaded; submit -> poll until no longer IN_PROGRESS -> release."""

    def submit_reads(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        """Start reading. One failing block never fails another. Never raises for a missing or truncated object: its
        ticket does. Of an object that is too long S3 delivers the beginning; the header decides what it is worth.
        """
        ...

    def submit_writes(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        """Start writing. An object becomes visible under its key only when complete (temporary name, then rename; or
        one PUT).

        The memory must stay unchanged until the ticket is no longer IN_PROGRESS. Writing a key that exists is a
        success.
        """
        ...

    def poll(self, ticket: IoTicket) -> IoState: ...

    def release(self, ticket: IoTicket) -> bool:
        """Give up a ticket. True: its memory is quiescent. False: it may still be written; call again later."""
        ...

    def stalled_s(self) -> float:
        """How long the oldest call to storage has had no answer; 0.0 where none waits, or storage has worked since it
        began: being asked may try that. Any thread.
        """
        ...

    def close(self) -> None:
        """Give up everything. Bounded: what does not end, in a thread or in memory, is left behind."""
        ...


class BlockDirectory(Protocol):
    """Blocks by their keys. Thread-safe; may block."""

    url: str

    def exists(self, key: BlockKey) -> bool: ...

    def read_header(self, key: BlockKey) -> bytes:
        """The first HEADER_BYTES bytes. Raises BlockMissingError, BlockCorruptError (too short) or StoreError."""
        ...

    def delete(self, key: BlockKey) -> None:
        """Remove the object; absent is fine. Raises StoreError."""
        ...

    def free_bytes(self) -> int | None:
        """What storage still has for us; None where it does not say. Raises StoreError."""
        ...

    def try_write(self, num_bytes: int | None = None) -> None:
        """Write an object under no block's name, of the usual size unless given, and remove it. Raises StoreFullError
        where there is no room, StoreError where it cannot be written for another reason.
        """
        ...


class BlockStore(BlockDirectory, Protocol):
    """All blocks of one namespace. Its I/O reaches other namespaces, too."""

    namespace_digest: bytes
    geometry: KvGeometry

    def open_io(self, agent: Any, runtime: Runtime) -> StoreIo:
        """The face that moves bytes, for the thread that owns ``agent``, a NIXL agent (ignored by stores that need
        none).

        Call it before the staging memory is registered: it creates the backend with which that memory has to be
        registered.
        """
        ...

    def list_blocks(self) -> Iterator[StoredBlock]:
        """All complete objects, in any order. Temporary files of dead writers are swept, not listed."""
        ...

    def close(self) -> None: ...

"""Moves blocks between files and registered memory with NIXL's POSIX backend, or another that takes open files.

One transfer handle with one descriptor per object, so that a failing object fails alone. Files are opened, measured
and registered in batches; at most ``max_open`` are open at once and the rest wait in a queue. A file's descriptor
belongs to its ticket from ``open`` until NIXL has forgotten it, and is closed only then, so its number cannot mean
another file while a transfer still names it.

A transfer in progress is never aborted, since nothing tells when an abort has taken effect: a hung file system holds
its tickets, their memory and their descriptors, and ``release`` says so.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice

from dualpath.core.errors import BlockCorruptError, StoreError
from dualpath.store.contract import IoRequest, IoState, IoTicket
from dualpath.store.file_ticket import FileTicket, explain, region
from dualpath.store.files import FileStore
from dualpath.store.nixl_api import Agent, ensure_backend

logger = logging.getLogger(__name__)

MAX_OPEN_FILES = 256
CLOSE_TIMEOUT_S = 5.0
DOUBT_S = 30.0
_CHECKS_PER_QUEUED_POLL = 8
_POSTS_PER_CALL = 16
_FILES_PER_RETIREMENT = 16


class FileIo:
    """StoreIo over one NIXL agent. Create it before the staging memory is registered: it makes sure of the backend."""

    def __init__(
        self,
        store: FileStore,
        agent: Agent,
        *,
        backend: str = "POSIX",
        backend_params: Mapping[str, str] | None = None,
        max_open: int = MAX_OPEN_FILES,
        doubt_s: float = DOUBT_S,
    ) -> None:
        ensure_backend(agent, backend, backend_params)
        self._backends = [backend]
        self._store = store
        self._agent = agent
        self._max_open = max_open
        self._doubt_s = doubt_s
        self._queue: deque[FileTicket] = deque()
        self._retired: list[tuple[int, int, int, str]] = []  # files of finished transfers, still registered and open
        self._active: dict[FileTicket, None] = {}  # every ticket that holds a descriptor, longest unseen first

    def submit_reads(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        return self._submit([FileTicket(request.key, request, is_write=False) for request in requests])

    def submit_writes(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        return self._submit([FileTicket(request.key, request, is_write=True) for request in requests])

    def poll(self, ticket: IoTicket) -> IoState:
        assert isinstance(ticket, FileTicket)
        if ticket.state is IoState.IN_PROGRESS:
            if ticket.handle is not None:
                self._check(ticket)
            else:
                self._check_some()
            if self._queue:
                self._pump()
        return ticket.state

    def release(self, ticket: IoTicket) -> bool:
        """A write that was given up before its end is not published."""
        assert isinstance(ticket, FileTicket)
        if ticket.state is IoState.IN_PROGRESS:
            ticket.is_abandoned = True
            if ticket.handle is None:
                ticket.error, ticket.state = StoreError("given up"), IoState.FAILED
            else:
                self._check(ticket)
        return ticket.state is not IoState.IN_PROGRESS

    def close(self) -> None:
        """Give up what is queued and wait, for a bounded time, for what is under way."""
        for ticket in self._queue:
            self.release(ticket)
        self._queue.clear()
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        while self._active and time.monotonic() < deadline_s:
            for ticket in list(self._active):
                self.release(ticket)
            time.sleep(0.001)
        self._retire_files()
        if self._active:
            logger.warning(
                "%d transfers of %s did not end; their memory stays in use", len(self._active), self._store.url
            )

    def num_open_files(self) -> int:
        return len(self._active) + len(self._retired)

    def _submit(self, tickets: list[FileTicket]) -> list[FileTicket]:
        self._queue.extend(tickets)
        self._pump()
        return tickets

    def _pump(self) -> None:
        """Start a few queued tickets if there is room. Few, because posting may do a buffered file's I/O at once."""
        if self.num_open_files() >= self._max_open:
            self._retire_files()
        batch: list[FileTicket] = []
        while self._queue and self.num_open_files() < self._max_open and len(batch) < _POSTS_PER_CALL:
            ticket = self._queue.popleft()
            if ticket.state is not IoState.IN_PROGRESS:
                continue  # given up while it was queued
            try:
                self._open(ticket)
                batch.append(ticket)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._active:
                    self._queue.appendleft(ticket)
                    break
                self._finish(ticket, explain(ticket, error))
            except StoreError as error:
                self._finish(ticket, error)
        if batch:
            self._start(batch)

    def _open(self, ticket: FileTicket) -> None:
        if ticket.is_write:
            self._open_temporary(ticket)
            self._active[ticket] = None
            return
        ticket.fd = os.open(self._store.path_of(ticket.key), os.O_RDONLY)
        self._active[ticket] = None
        num_bytes = os.fstat(ticket.fd).st_size
        if num_bytes != ticket.request.num_bytes:
            raise BlockCorruptError(
                f"block {ticket.key.hex()}: file of {num_bytes} bytes instead of {ticket.request.num_bytes}"
            )

    def _open_temporary(self, ticket: FileTicket) -> None:
        """The key's two-digit folder is made on first use; its parent never is: a vanished mount must not be filled."""
        path = self._store.temporary_of(ticket.key)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            ticket.fd = os.open(path, flags, 0o644)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.mkdir(os.path.dirname(path))
            ticket.fd = os.open(path, flags, 0o644)
        ticket.temporary = path

    def _start(self, batch: list[FileTicket]) -> None:
        """Register the batch's descriptors in one call, or one by one if that fails, and post each transfer."""
        try:
            self._agent.register_memory([region(ticket) for ticket in batch], "FILE", backends=self._backends)
        except Exception as error:  # the binding's exceptions share no public base class
            if len(batch) == 1:
                self._finish(batch[0], explain(batch[0], error))
                return
            for ticket in batch:
                self._start([ticket])
            return
        for ticket in batch:
            ticket.is_registered = True
            self._post(ticket)

    def _retire_files(self) -> None:
        """Let NIXL forget the files of finished transfers, several in one call, and only then close them."""
        retired, self._retired = self._retired, []
        if not retired:
            return
        try:
            self._agent.deregister_memory(self._agent.get_reg_descs(retired, "FILE"), backends=self._backends)
        except Exception:
            logger.exception("NIXL does not forget its files")
        for _, _, fd, _ in retired:
            os.close(fd)

    def _post(self, ticket: FileTicket) -> None:
        request, agent = ticket.request, self._agent
        try:
            local = agent.get_xfer_descs([(request.address, request.num_bytes, 0)], "DRAM")
            remote = agent.get_xfer_descs([(0, request.num_bytes, ticket.fd)], "FILE")
            operation = "WRITE" if ticket.is_write else "READ"
            ticket.handle = agent.initialize_xfer(operation, local, remote, agent.name, b"", self._backends)
            status = agent.transfer(ticket.handle)
        except Exception as error:
            if ticket.handle is None:
                self._finish(ticket, explain(ticket, error))
            else:
                self._doubt(ticket, explain(ticket, error))
            return
        if status != "PROC":
            self._end(ticket, status)

    def _check_some(self) -> None:
        """Look at a few of those under way, in turn: a queued ticket must not wait for somebody to poll these."""
        for ticket in list(islice(self._active, _CHECKS_PER_QUEUED_POLL)):
            self._active[ticket] = self._active.pop(ticket)  # to the end of the line
            self._check(ticket)

    def _check(self, ticket: FileTicket) -> None:
        if ticket.doubt_ends_s:
            if time.monotonic() >= ticket.doubt_ends_s:
                self._finish(ticket, ticket.error)
            return
        try:
            status = self._agent.check_xfer_state(ticket.handle)
        except Exception as error:
            self._doubt(ticket, explain(ticket, error))
            return
        if status != "PROC":
            self._end(ticket, status)

    def _doubt(self, ticket: FileTicket, error: StoreError) -> None:
        """An error is a transfer's own end, unless the queue that all share failed: then bytes may still arrive.

        NIXL does not tell the two apart. A write or a file that turned out short is clear; any other read keeps its
        memory for a while before it counts as failed.
        """
        if ticket.is_write or os.fstat(ticket.fd).st_size < ticket.request.num_bytes:
            self._finish(ticket, error)
        else:
            ticket.error, ticket.doubt_ends_s = error, time.monotonic() + self._doubt_s

    def _end(self, ticket: FileTicket, status: str) -> None:
        """NIXL is done with the memory: publish what was written, and settle the ticket."""
        error: StoreError | None = None
        try:
            if status != "DONE":
                raise StoreError(f"block {ticket.key.hex()}: transfer ended in state {status}")
            if ticket.is_write and not ticket.is_abandoned:
                self._publish(ticket)
        except StoreError as failure:
            error = failure
        except OSError as failure:
            error = explain(ticket, failure)
        self._finish(ticket, error)

    def _publish(self, ticket: FileTicket) -> None:
        num_bytes = os.fstat(ticket.fd).st_size
        if num_bytes != ticket.request.num_bytes:
            raise StoreError(f"block {ticket.key.hex()}: only {num_bytes} bytes were written; is the disk full?")
        path = self._store.path_of(ticket.key)
        if self._store.durable:
            os.fsync(ticket.fd)
        os.rename(ticket.temporary, path)
        ticket.temporary = ""
        if self._store.durable:
            _sync_directory(os.path.dirname(path))

    def _finish(self, ticket: FileTicket, error: Exception | None) -> None:
        """The only way out: handle, registration, descriptor and temporary go, whatever state they were in."""
        if ticket.handle is not None:
            try:
                ticket.handle.release()
            except Exception:  # NIXL keeps it and tries again when the agent ends
                logger.exception("NIXL does not release a transfer")
            ticket.handle = None
        if ticket.is_registered:
            self._retired.append(region(ticket))
        elif ticket.fd >= 0:
            os.close(ticket.fd)
        ticket.fd, ticket.is_registered = -1, False
        if ticket.temporary:
            with suppress(OSError):
                os.unlink(ticket.temporary)
            ticket.temporary = ""
        self._active.pop(ticket, None)
        if len(self._retired) >= _FILES_PER_RETIREMENT or not self._active:
            self._retire_files()
        ticket.error = error
        ticket.state = IoState.DONE if error is None else IoState.FAILED


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

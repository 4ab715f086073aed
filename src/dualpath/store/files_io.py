"""Moves blocks between files and registered memory with NIXL's POSIX backend, or another that takes open files.

The thread that owns the agent moves the bytes (dualpath.store.file_transfers). Whatever else is asked of the file
system may hang, and is done by other threads (dualpath.store.blocking_calls): open and measure before a transfer, name
and close after it. A file system that hangs thus costs its own blocks their deadlines and nothing else.

At most ``max_open`` files are open at once and the rest wait in a queue. A file's descriptor belongs to its ticket from
``open`` until NIXL has forgotten it, and is closed only then, so its number cannot mean another file while a transfer
still names it.

A transfer in progress is never aborted, since nothing tells when an abort has taken effect: one that hangs holds its
ticket, its memory and its descriptor, and ``release`` says so. Before and after its transfer a ticket holds no memory.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial

from dualpath.core.errors import StoreError
from dualpath.core.runtime import Command, Runtime
from dualpath.store.blocking_calls import BlockingCalls
from dualpath.store.contract import IoRequest, IoState, IoTicket
from dualpath.store.file_calls import FileCalls
from dualpath.store.file_ticket import FileTicket, explain
from dualpath.store.file_transfers import FileTransfers
from dualpath.store.files import FileStore
from dualpath.store.nixl_api import Agent

logger = logging.getLogger(__name__)

MAX_OPEN_FILES = 256
CLOSE_TIMEOUT_S = 5.0
DOUBT_S = 30.0
_POSTS_PER_POLL = 16  # posting may do a buffered file's I/O at once


class FileIo:
    """StoreIo over one NIXL agent. Create it before the staging memory is registered: it makes sure of the backend."""

    def __init__(
        self,
        store: FileStore,
        agent: Agent,
        runtime: Runtime,
        *,
        backend: str = "POSIX",
        backend_params: Mapping[str, str] | None = None,
        max_open: int = MAX_OPEN_FILES,
        doubt_s: float = DOUBT_S,
    ) -> None:
        self._store, self._runtime, self._max_open = store, runtime, max_open
        self._files = FileCalls(store)
        self._calls = BlockingCalls(runtime, f"{agent.name}-files")
        self._transfers = FileTransfers(
            agent, backend, backend_params, runtime, self._calls, doubt_s, self._at_rest, self._forgotten
        )
        self._queue: deque[FileTicket] = deque()
        self._opened: deque[FileTicket] = deque()  # to be posted
        self._num_open = 0  # files open, or about to be
        self._is_short = False  # of descriptors, in this process or on this machine
        self._is_closing = False

    def submit_reads(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        return self._submit([FileTicket(request.key, request, is_write=False) for request in requests])

    def submit_writes(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        return self._submit([FileTicket(request.key, request, is_write=True) for request in requests])

    def poll(self, ticket: IoTicket) -> IoState:
        assert isinstance(ticket, FileTicket)
        if ticket.state is IoState.IN_PROGRESS:
            self._advance()
            if ticket.handle is not None:
                self._transfers.check(ticket)
            elif ticket.has_moved:
                self._transfers.retire()  # those that ended in the same look as this one go together
            else:  # a ticket that waits must not wait for somebody to poll those before it
                self._transfers.check_some()
        return ticket.state

    def release(self, ticket: IoTicket) -> bool:
        """A write that was given up before its end is not published, unless its renaming has begun."""
        assert isinstance(ticket, FileTicket)
        if ticket.state is IoState.IN_PROGRESS:
            ticket.is_abandoned = True
            if ticket.handle is not None:
                self._transfers.check(ticket)
            else:
                ticket.settle(StoreError("given up"))
        return ticket.state is not IoState.IN_PROGRESS

    def stalled_s(self) -> float:
        return max(self._transfers.oldest_s(), self._calls.stalled_s())

    def close(self) -> None:
        self._is_closing = True
        for ticket in self._queue:
            self.release(ticket)
        self._queue.clear()
        deadline_s = self._runtime.now_s() + CLOSE_TIMEOUT_S
        while (self._transfers.moving or self._calls.num_lively) and self._runtime.now_s() < deadline_s:
            self._advance()
            for ticket in self._transfers.moving:
                self.release(ticket)
            self._transfers.retire()
            with suppress(TimeoutError):
                self._runtime.wait(Future(), 0.001)
        num_moving, num_hung = len(self._transfers.moving), self._calls.close()
        if num_moving:
            logger.warning("%d transfers of %s did not end; their memory stays in use", num_moving, self._store.url)
        if num_hung:
            logger.warning("%d calls into %s do not return; their threads are left behind", num_hung, self._store.url)

    def num_open_files(self) -> int:
        return self._num_open

    def _submit(self, tickets: list[FileTicket]) -> list[FileTicket]:
        self._queue.extend(tickets)
        self._advance()
        return tickets

    def _advance(self) -> None:
        """Take what other threads have done, post a few transfers, have files opened where there is room."""
        self._calls.take()
        if self._opened:
            self._start([self._opened.popleft() for _ in range(min(len(self._opened), _POSTS_PER_POLL))])
        if self._queue and not self._is_short:
            self._open_some()

    def _start(self, tickets: Sequence[FileTicket]) -> None:
        """Post those that are still wanted."""
        batch = []
        for ticket in tickets:
            if ticket.state is IoState.IN_PROGRESS and not self._is_closing:
                batch.append(ticket)
            else:
                ticket.is_abandoned = True
                ticket.settle(StoreError("given up"))
                self._forgotten([ticket])
        if batch:
            self._transfers.start(batch)

    def _open_some(self) -> None:
        if self._num_open >= self._max_open:
            self._transfers.retire()
        calls = []
        while self._queue and self._num_open < self._max_open:
            ticket = self._queue.popleft()
            if ticket.state is IoState.IN_PROGRESS:  # not given up while it was queued
                self._num_open += 1
                calls.append(partial(self._open, ticket))
        self._calls.run(calls)

    def _open(self, ticket: FileTicket) -> Command:
        """On another thread."""
        fd, temporary, failure = -1, "", None
        try:
            if ticket.is_given_up():
                raise StoreError("given up")
            if ticket.is_write:
                fd, temporary = self._files.open_temporary(ticket.key)
            else:
                fd = self._files.open_block(ticket.key, ticket.request.num_bytes)
            if ticket.is_given_up():
                self._files.remove(fd, temporary)
                raise StoreError("given up")
        except Exception as error:
            failure = error
        return partial(self._take_opened, ticket, fd, temporary, failure)

    def _take_opened(self, ticket: FileTicket, fd: int, temporary: str, failure: Exception | None) -> None:
        ticket.fd, ticket.temporary = fd, temporary
        if failure is None:
            self._opened.append(ticket)
            return
        self._take_closed(1)
        if isinstance(failure, OSError) and failure.errno in (errno.EMFILE, errno.ENFILE) and self._num_open:
            self._is_short = True  # until one of ours is closed
            self._queue.appendleft(ticket)
        else:
            ticket.settle(explain(ticket, failure))

    def _at_rest(self, ticket: FileTicket, error: StoreError | None) -> None:
        """A read is over; a write ends when its file has its name, or is removed."""
        ticket.has_moved, ticket.error = True, error
        if not ticket.is_write:
            ticket.settle(error)
        elif ticket.is_abandoned:
            ticket.settle(error or StoreError("given up"))

    def _forgotten(self, tickets: Sequence[FileTicket]) -> None:
        """Nobody else knows these files any more."""
        calls = [partial(self._conclude, ticket) for ticket in tickets if ticket.is_write]
        fds = [ticket.fd for ticket in tickets if not ticket.is_write]
        self._calls.run([*calls, partial(self._close, fds)] if fds else calls)

    def _close(self, fds: Sequence[int]) -> Command:
        """On another thread."""
        self._files.close(fds)
        return partial(self._take_closed, len(fds))

    def _take_closed(self, num_files: int) -> None:
        self._num_open -= num_files
        self._is_short = False

    def _conclude(self, ticket: FileTicket) -> Command:
        """On another thread: a written file gets its name, or is removed."""
        failure = ticket.error
        num_bytes = ticket.request.num_bytes
        try:
            if failure is not None:
                self._files.discard(ticket.key, ticket.fd, ticket.temporary, num_bytes)
            else:
                self._files.publish(ticket.key, ticket.fd, ticket.temporary, num_bytes, ticket.is_given_up)
        except Exception as error:
            failure = explain(ticket, error)
        return partial(self._take_concluded, ticket, failure)

    def _take_concluded(self, ticket: FileTicket, failure: Exception | None) -> None:
        self._take_closed(1)
        ticket.settle(failure)

"""Moves blocks between files and registered memory with NIXL's POSIX backend, or another that takes open files.

Other threads open and measure a file before its transfer, name and close it after. At most ``max_open`` files are open
at once and the rest wait in a queue. A file's descriptor belongs to its ticket from ``open`` until NIXL has forgotten
it, and is closed only then, so its number cannot mean another file while a transfer still names it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from dualpath.core.errors import StoreError
from dualpath.core.runtime import Command, Runtime
from dualpath.store.blocking_calls import BlockingCalls
from dualpath.store.files.calls import FileCalls, explain
from dualpath.store.files.directory import FileDirectory
from dualpath.store.nixl_api import Agent
from dualpath.store.nixl_transfers import NixlIo, NixlTicket

MAX_OPEN_FILES = 256
DOUBT_S = 30.0


@dataclass(slots=True, eq=False)
class FileTicket(NixlTicket):
    """Its device id is the open file's descriptor."""

    temporary: str = ""  # the path of what is written
    doubt_ends_s: float = 0.0  # 0: no doubt


class FileIo(NixlIo[FileTicket]):
    """A write that is given up before its end is not published, unless its renaming has begun."""

    def __init__(
        self,
        directory: FileDirectory,
        agent: Agent,
        runtime: Runtime,
        *,
        backend: str = "POSIX",
        backend_params: Mapping[str, str] | None = None,
        max_open: int = MAX_OPEN_FILES,
        doubt_s: float = DOUBT_S,
    ) -> None:
        calls = BlockingCalls(runtime, f"{agent.name}-files", directory.try_write)
        super().__init__(FileTicket, "FILE", directory.url, agent, runtime, calls, backend, backend_params)
        self._files = FileCalls(directory)
        self._max_open, self._doubt_s = max_open, doubt_s
        self._num_open = 0  # files open, or about to be
        self._is_short = False  # of descriptors, in this process or on this machine

    def num_open_files(self) -> int:
        return self._num_open

    # --- before a transfer ----------------------------------------------------------------------------------------

    def _num_free(self) -> int:
        if self._num_open >= self._max_open:
            self._retire()
        return 0 if self._is_short else self._max_open - self._num_open

    def _prepare(self, tickets: Sequence[FileTicket]) -> None:
        self._num_open += len(tickets)
        self._calls.run([partial(self._open, ticket) for ticket in tickets])

    def _open(self, ticket: FileTicket) -> Command:
        """On another thread."""
        fd, temporary, failure = -1, "", None
        try:
            if ticket.is_given_up():
                raise StoreError("given up")
            if ticket.is_write:
                fd, temporary = self._files.open_temporary(ticket.request)
            else:
                fd = self._files.open_block(ticket.request)
            if ticket.is_given_up():
                self._files.remove(fd, temporary)
                raise StoreError("given up")
        except Exception as error:
            failure = error
        return partial(self._take_opened, ticket, fd, temporary, failure)

    def _take_opened(self, ticket: FileTicket, fd: int, temporary: str, failure: Exception | None) -> None:
        ticket.device_id, ticket.temporary = fd, temporary
        if failure is None:
            self._ready.append(ticket)
            return
        self._take_closed(1)
        if isinstance(failure, OSError) and failure.errno in (errno.EMFILE, errno.ENFILE) and self._num_open:
            self._is_short = True  # until one of ours is closed
            self._queue.appendleft(ticket)
        else:
            ticket.settle(explain(ticket, failure))

    # --- a transfer that failed -----------------------------------------------------------------------------------

    def _fail(self, ticket: FileTicket, error: StoreError) -> None:
        """An error is a transfer's own end, unless the queue that all share failed: then bytes may still arrive.

        NIXL does not tell the two apart. A write or a file that turned out short is clear; any other read keeps its
        memory for a while before it counts as failed.
        """
        if ticket.is_write or ticket.handle is None:
            self._end(ticket, error)
            return
        ticket.error, ticket.doubt_ends_s = error, self._runtime.now_s() + self._doubt_s
        self._calls.run([partial(self._measure, ticket, ticket.device_id)])

    def _check(self, ticket: FileTicket) -> None:
        if not ticket.doubt_ends_s:
            super()._check(ticket)
        elif self._runtime.now_s() >= ticket.doubt_ends_s:
            self._end(ticket, ticket.error)

    def _measure(self, ticket: FileTicket, fd: int) -> Command:
        """On another thread."""
        is_short = False
        with suppress(OSError):
            is_short = os.fstat(fd).st_size < ticket.request.num_bytes
        return partial(self._clear_doubt, ticket, is_short)

    def _clear_doubt(self, ticket: FileTicket, is_short: bool) -> None:
        if is_short and ticket.handle is not None:
            self._end(ticket, ticket.error)

    # --- after a transfer -----------------------------------------------------------------------------------------

    def _at_rest(self, ticket: FileTicket, error: Exception | None) -> None:
        """A read is over; a write ends when its file has its name, or is removed."""
        ticket.error = error
        if not ticket.is_write:
            ticket.settle(error)
        elif ticket.is_abandoned:
            ticket.settle(error or StoreError("given up"))

    def _forgotten(self, tickets: Sequence[FileTicket]) -> None:
        calls = [partial(self._conclude, ticket) for ticket in tickets if ticket.is_write]
        fds = [ticket.device_id for ticket in tickets if not ticket.is_write]
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
        fd, num_bytes = ticket.device_id, ticket.request.num_bytes
        try:
            if failure is not None:
                self._files.discard(ticket.key, fd, ticket.temporary, num_bytes)
            else:
                self._files.publish(ticket.request, fd, ticket.temporary, ticket.is_given_up)
        except Exception as error:
            failure = explain(ticket, error)
        return partial(self._take_concluded, ticket, failure)

    def _take_concluded(self, ticket: FileTicket, failure: Exception | None) -> None:
        self._take_closed(1)
        ticket.settle(failure)

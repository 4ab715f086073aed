"""Moves blocks between files and memory with threads of ours, where the kernel has no io_uring for us (containers).

NIXL has libaio there, which does a buffered file's whole I/O inside the post, on the thread that watches deadlines: a
file system that hangs would stop the engine. Here one call on another thread does all there is to do about a block; it
touches the block's memory between two marks, and not at all once it was given up before the first.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from dualpath.core.errors import BlockCorruptError, StoreError
from dualpath.core.runtime import Command, Runtime
from dualpath.store.blocking_calls import BlockingCalls
from dualpath.store.contract import IoRequest, IoState, IoTicket
from dualpath.store.files.calls import FileCalls, explain
from dualpath.store.files.directory import FileDirectory
from dualpath.store.ticket import Ticket

logger = logging.getLogger(__name__)

NUM_THREADS = 8
CLOSE_TIMEOUT_S = 5.0


@dataclass(slots=True, eq=False)
class PlainTicket(Ticket):
    is_moving: bool = False  # another thread may touch the memory


class PlainFileIo:
    """StoreIo without NIXL."""

    def __init__(self, directory: FileDirectory, name: str, runtime: Runtime) -> None:
        self._directory, self._runtime = directory, runtime
        self._files = FileCalls(directory)
        self._calls = BlockingCalls(runtime, f"{name}-files", directory.try_write, NUM_THREADS)
        self._tickets: dict[PlainTicket, None] = {}  # on their way

    def submit_reads(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        return self._submit([PlainTicket(request.key, request, is_write=False) for request in requests])

    def submit_writes(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        return self._submit([PlainTicket(request.key, request, is_write=True) for request in requests])

    def poll(self, ticket: IoTicket) -> IoState:
        assert isinstance(ticket, PlainTicket)
        if ticket.state is IoState.IN_PROGRESS:
            self._calls.take()
        return ticket.state

    def release(self, ticket: IoTicket) -> bool:
        """A write that was given up before its end is not published, unless its renaming has begun."""
        assert isinstance(ticket, PlainTicket)
        if ticket.state is IoState.IN_PROGRESS:
            ticket.is_abandoned = True  # first this, then look: the other thread does it the other way round
            if not ticket.is_moving:
                self._settle(ticket, StoreError("given up"))
        return ticket.state is not IoState.IN_PROGRESS

    def stalled_s(self) -> float:
        return self._calls.stalled_s()

    def close(self) -> None:
        deadline_s = self._runtime.now_s() + CLOSE_TIMEOUT_S
        while (self._tickets or self._calls.num_lively) and self._runtime.now_s() < deadline_s:
            for ticket in list(self._tickets):
                self.release(ticket)
            self._calls.take()
            with suppress(TimeoutError):
                self._runtime.wait(Future(), 0.001)
        num_moving, num_hung = len(self._tickets), self._calls.close()
        if num_hung:
            text = "%d calls into %s do not return, their threads are left behind; the memory of %d stays in use"
            logger.warning(text, num_hung, self._directory.url, num_moving)

    def _submit(self, tickets: list[PlainTicket]) -> list[PlainTicket]:
        self._tickets.update(dict.fromkeys(tickets))
        self._calls.run([partial(self._carry_out, ticket) for ticket in tickets])
        return tickets

    def _settle(self, ticket: PlainTicket, error: Exception | None) -> None:
        self._tickets.pop(ticket, None)
        ticket.settle(error)

    def _carry_out(self, ticket: PlainTicket) -> Command:
        """On another thread."""
        failure: StoreError | None = None
        try:
            if ticket.is_given_up():
                raise StoreError("given up")
            if ticket.is_write:
                self._write(ticket)
            else:
                self._read(ticket)
        except Exception as error:
            failure = explain(ticket, error)
        return partial(self._settle, ticket, failure)

    def _read(self, ticket: PlainTicket) -> None:
        fd = self._files.open_block(ticket.request)
        try:
            _move(ticket, fd)
        finally:
            self._files.close([fd])

    def _write(self, ticket: PlainTicket) -> None:
        fd, temporary = self._files.open_temporary(ticket.request)
        try:
            _move(ticket, fd)
        except BaseException:
            self._files.remove(fd, temporary)
            raise
        self._files.publish(ticket.request, fd, temporary, ticket.is_given_up)


def _move(ticket: PlainTicket, fd: int) -> None:
    """The whole object. Raises OSError or StoreError; the memory is at rest then, too."""
    request, num_moved = ticket.request, 0
    memory = memoryview((ctypes.c_char * request.num_bytes).from_address(request.address)).cast("B")
    ticket.is_moving = True
    try:
        while num_moved < request.num_bytes:
            if ticket.is_given_up():
                raise StoreError("given up")
            left = [memory[num_moved:]]
            num_bytes = (os.pwritev if ticket.is_write else os.preadv)(fd, left, num_moved)
            if not num_bytes:
                raise BlockCorruptError(f"block {ticket.key.hex()}: the file ends after {num_moved} bytes")
            num_moved += num_bytes
    finally:
        ticket.is_moving = False

"""Transfers of open files by NIXL: registered, posted, polled and forgotten, all on the thread that owns the agent.

One handle with one descriptor per object, so that a failing object fails alone; files are registered and forgotten in
batches, which costs a sixth.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice

from dualpath.core.errors import StoreError
from dualpath.core.runtime import Command, Runtime
from dualpath.store.blocking_calls import BlockingCalls
from dualpath.store.file_ticket import FileTicket, explain, region
from dualpath.store.nixl_api import Agent, ensure_backend

logger = logging.getLogger(__name__)

_CHECKED_TOGETHER = 8
_FILES_PER_RETIREMENT = 16


class FileTransfers:
    """``on_end`` is told when a ticket's memory is at rest, ``on_forgotten`` when no transfer and no registration names
    the files any more.
    """

    def __init__(
        self,
        agent: Agent,
        backend: str,
        backend_params: Mapping[str, str] | None,
        runtime: Runtime,
        calls: BlockingCalls,
        doubt_s: float,
        on_end: Callable[[FileTicket, StoreError | None], None],
        on_forgotten: Callable[[Sequence[FileTicket]], None],
    ) -> None:
        ensure_backend(agent, backend, backend_params)
        self._agent, self._backends = agent, [backend]
        self._runtime, self._calls, self._doubt_s = runtime, calls, doubt_s
        self._on_end, self._on_forgotten = on_end, on_forgotten
        self._moving: dict[FileTicket, float] = {}  # longest unseen first: since when
        self._retired: list[FileTicket] = []  # over, and still registered

    @property
    def moving(self) -> tuple[FileTicket, ...]:
        return tuple(self._moving)

    def oldest_s(self) -> float:
        """How long the transfer that was posted first has been under way. Any thread."""
        posted_s = min(tuple(self._moving.values()), default=None)
        return 0.0 if posted_s is None else self._runtime.now_s() - posted_s

    def start(self, batch: Sequence[FileTicket]) -> None:
        """Register the files in one call, or one by one if that fails, and post each transfer."""
        try:
            self._agent.register_memory([region(ticket) for ticket in batch], "FILE", backends=self._backends)
        except Exception as error:  # the binding's exceptions share no public base class
            if len(batch) > 1:
                for ticket in batch:
                    self.start([ticket])
            else:
                self._on_end(batch[0], explain(batch[0], error))
                self._on_forgotten(batch)
            return
        for ticket in batch:
            self._post(ticket)

    def check(self, ticket: FileTicket) -> None:
        """Has it ended?"""
        if ticket.doubt_ends_s:
            if self._runtime.now_s() >= ticket.doubt_ends_s:
                assert ticket.error is not None
                self._end(ticket, explain(ticket, ticket.error))
            return
        try:
            status = self._agent.check_xfer_state(ticket.handle)
        except Exception as error:
            self._doubt(ticket, explain(ticket, error))
            return
        if status != "PROC":
            self._conclude(ticket, status)

    def check_some(self) -> None:
        """Look at a few, in turn."""
        for ticket in list(islice(self._moving, _CHECKED_TOGETHER)):
            self._moving[ticket] = self._moving.pop(ticket)  # to the end of the line
            self.check(ticket)

    def retire(self) -> None:
        """Let NIXL forget the files of transfers that are over, several in one call; only then they may be closed."""
        retired, self._retired = self._retired, []
        if not retired:
            return
        try:
            regions = self._agent.get_reg_descs([region(ticket) for ticket in retired], "FILE")
            self._agent.deregister_memory(regions, backends=self._backends)
        except Exception:
            logger.exception("NIXL does not forget its files")
        self._on_forgotten(retired)

    def _post(self, ticket: FileTicket) -> None:
        request, agent = ticket.request, self._agent
        try:
            local = agent.get_xfer_descs([(request.address, request.num_bytes, 0)], "DRAM")
            remote = agent.get_xfer_descs([(0, request.num_bytes, ticket.fd)], "FILE")
            operation = "WRITE" if ticket.is_write else "READ"
            ticket.handle = agent.initialize_xfer(operation, local, remote, agent.name, b"", self._backends)
            self._moving[ticket] = self._runtime.now_s()
            status = agent.transfer(ticket.handle)
        except Exception as error:
            if ticket.handle is None:
                self._end(ticket, explain(ticket, error))
            else:
                self._doubt(ticket, explain(ticket, error))
            return
        if status != "PROC":
            self._conclude(ticket, status)

    def _conclude(self, ticket: FileTicket, status: str) -> None:
        text = f"block {ticket.key.hex()}: transfer ended in state {status}"
        self._end(ticket, None if status == "DONE" else StoreError(text))

    def _doubt(self, ticket: FileTicket, error: StoreError) -> None:
        """An error is a transfer's own end, unless the queue that all share failed: then bytes may still arrive.

        NIXL does not tell the two apart. A write or a file that turned out short is clear; any other read keeps its
        memory for a while before it counts as failed.
        """
        if ticket.is_write:
            self._end(ticket, error)
            return
        ticket.error, ticket.doubt_ends_s = error, self._runtime.now_s() + self._doubt_s
        self._calls.run([partial(self._measure, ticket, ticket.fd)])

    def _measure(self, ticket: FileTicket, fd: int) -> Command:
        """On another thread."""
        is_short = False
        with suppress(OSError):
            is_short = os.fstat(fd).st_size < ticket.request.num_bytes
        return partial(self._clear_doubt, ticket, is_short)

    def _clear_doubt(self, ticket: FileTicket, is_short: bool) -> None:
        if is_short and ticket.handle is not None:
            ticket.doubt_ends_s = self._runtime.now_s()
            self.check(ticket)

    def _end(self, ticket: FileTicket, error: StoreError | None) -> None:
        self._moving.pop(ticket, None)
        if ticket.handle is not None:
            try:
                ticket.handle.release()
            except Exception:  # NIXL keeps it and tries again when the agent ends
                logger.exception("NIXL does not release a transfer")
            ticket.handle = None
        self._retired.append(ticket)
        self._on_end(ticket, error)
        if len(self._retired) >= _FILES_PER_RETIREMENT or not self._moving:
            self.retire()

"""Moves blocks between S3 and registered memory with NIXL's OBJ backend.

One transfer handle per object, since a failing object fails its whole handle; a GET or a PUT each. NIXL says only that
a transfer failed, so a worker thread then asks the bucket why: gone, of another size, or there after all, and then it
is tried once more. The AWS client below NIXL does not retry: its second attempt would continue in memory where the
first one broke off.

A transfer in progress is never aborted: NIXL would forget it while its request goes on writing memory. It holds its
ticket until NIXL reports an end, and ``release`` says so. With the settings made here the client gives up a read that
stalls for 3 s and a write that stalls for 10 s (measured with a stopped server); as long as a byte a second arrives it
waits. At most ``2 * connections`` transfers are posted at once, so no more memory than theirs can ever be held up; the
rest wait in a queue, where giving up costs nothing.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import islice

from dualpath.core.errors import BlockCorruptError, BlockMissingError, StoreError
from dualpath.core.runtime import Command, Runtime
from dualpath.store.blocking_calls import BlockingCalls
from dualpath.store.contract import IoRequest, IoState, IoTicket
from dualpath.store.nixl_api import Agent, ensure_backend
from dualpath.store.s3 import S3Store
from dualpath.store.s3_backend import backend_params, keep_forever, prepare_environment
from dualpath.store.s3_ticket import S3Ticket, last_byte, set_mark

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 5.0
MAX_ATTEMPTS = 2
MAX_INQUIRERS = 4
_CHECKS_PER_QUEUED_POLL = 8
_OBJECTS_PER_RETIREMENT = 16
_BACKENDS = ["OBJ"]
_device_ids = itertools.count(1)


class S3Io:
    """StoreIo over one NIXL agent. Create it before the staging memory is registered: it makes sure of the backend."""

    def __init__(self, store: S3Store, agent: Agent, runtime: Runtime) -> None:
        prepare_environment(store.settings)
        ensure_backend(agent, _BACKENDS[0], backend_params(store.settings))
        self._store = store
        self._agent = agent
        self._runtime = runtime
        self._max_posted = 2 * store.settings.connections
        self._queue: deque[S3Ticket] = deque()
        self._posted: dict[S3Ticket, float] = {}  # longest unseen first: since when
        self._retired: list[tuple[int, int, int, str]] = []  # objects of finished transfers, still registered
        self._inquiries = BlockingCalls(runtime, f"{agent.name}-s3", max_threads=MAX_INQUIRERS)

    def submit_reads(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        return self._submit([S3Ticket(request.key, request, is_write=False) for request in requests])

    def submit_writes(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        return self._submit([S3Ticket(request.key, request, is_write=True) for request in requests])

    def poll(self, ticket: IoTicket) -> IoState:
        assert isinstance(ticket, S3Ticket)
        if ticket.state is IoState.IN_PROGRESS:
            self._inquiries.take()
            if ticket.handle is not None:
                self._check(ticket)
            elif not ticket.is_asked:
                self._check_some()
            if self._queue:
                self._pump()
        return ticket.state

    def release(self, ticket: IoTicket) -> bool:
        """A write that was given up may still appear, whole: S3 knows no way back from a PUT."""
        assert isinstance(ticket, S3Ticket)
        if ticket.state is IoState.IN_PROGRESS:
            ticket.is_abandoned = True
            if ticket.handle is None:
                self._settle(ticket, StoreError("given up"))
            else:
                self._check(ticket)
        return ticket.state is not IoState.IN_PROGRESS

    def stalled_s(self) -> float:
        posted_s = min(tuple(self._posted.values()), default=None)
        moving_s = 0.0 if posted_s is None else self._runtime.now_s() - posted_s
        return max(moving_s, self._inquiries.stalled_s())

    def close(self) -> None:
        """Give up what is queued and wait, for a bounded time, for what is under way."""
        for ticket in self._queue:
            self.release(ticket)
        self._queue.clear()
        deadline_s = self._runtime.now_s() + CLOSE_TIMEOUT_S
        while self._posted and self._runtime.now_s() < deadline_s:
            for ticket in list(self._posted):
                self.release(ticket)
            with suppress(TimeoutError):
                self._runtime.wait(Future(), 0.001)
        self._inquiries.close()
        self._retire()
        if self._posted:
            logger.warning(
                "%d transfers of %s did not end; their memory stays in use", self.num_posted, self._store.url
            )
            keep_forever(self._agent.agent, [ticket.handle for ticket in self._posted])

    @property
    def num_posted(self) -> int:
        """Transfers that may touch memory, abandoned ones included."""
        return len(self._posted)

    def _submit(self, tickets: list[S3Ticket]) -> list[S3Ticket]:
        self._queue.extend(tickets)
        self._pump()
        return tickets

    def _pump(self) -> None:
        """Start queued tickets while there is room. Posting only hands a request to the client's threads."""
        batch: list[S3Ticket] = []
        while self._queue and len(self._posted) + len(batch) < self._max_posted:
            ticket = self._queue.popleft()
            if ticket.state is IoState.IN_PROGRESS:  # not given up while it was queued
                ticket.device_id = next(_device_ids)
                batch.append(ticket)
        if not batch:
            return
        try:
            self._agent.register_memory([self._region(ticket) for ticket in batch], "OBJ", backends=_BACKENDS)
        except Exception as error:  # the binding's exceptions share no public base class
            for ticket in batch:
                ticket.device_id = 0
                self._settle(ticket, StoreError(f"block {ticket.key.hex()}: NIXL says {error!r}"))
            return
        for ticket in batch:
            self._post(ticket)

    def _region(self, ticket: S3Ticket) -> tuple[int, int, int, str]:
        """The object as NIXL registers it."""
        return (0, ticket.request.num_bytes, ticket.device_id, self._store.name_of(ticket.key))

    def _post(self, ticket: S3Ticket) -> None:
        request, agent = ticket.request, self._agent
        if not ticket.is_write:
            ticket.mark = set_mark(request, self._runtime)
        ticket.num_attempts += 1
        try:
            local = agent.get_xfer_descs([(request.address, request.num_bytes, 0)], "DRAM")
            remote = agent.get_xfer_descs([(0, request.num_bytes, ticket.device_id)], "OBJ")
            operation = "WRITE" if ticket.is_write else "READ"
            ticket.handle = agent.initialize_xfer(operation, local, remote, agent.name, b"", _BACKENDS)
            self._posted[ticket] = self._runtime.now_s()
            status = agent.transfer(ticket.handle)
        except Exception as error:  # refused before any request was made
            self._rest(ticket)
            self._settle(ticket, StoreError(f"block {ticket.key.hex()}: NIXL says {error!r}"))
            return
        if status != "PROC":
            self._end(ticket, is_good=status == "DONE")

    def _check_some(self) -> None:
        """Look at a few of those under way, in turn: a queued ticket must not wait for somebody to poll these."""
        for ticket in list(islice(self._posted, _CHECKS_PER_QUEUED_POLL)):
            self._posted[ticket] = self._posted.pop(ticket)  # to the end of the line
            self._check(ticket)

    def _check(self, ticket: S3Ticket) -> None:
        try:
            status = self._agent.check_xfer_state(ticket.handle)
        except Exception:  # how the binding reports a failed request; it has ended
            status = "ERR"
        if status != "PROC":
            self._end(ticket, is_good=status == "DONE")

    def _end(self, ticket: S3Ticket, *, is_good: bool) -> None:
        """NIXL is done with the memory. What is not clear yet is asked of the bucket."""
        self._rest(ticket)
        if ticket.is_abandoned:
            self._settle(ticket, None if is_good else StoreError("given up"))
        elif is_good and (ticket.is_write or last_byte(ticket.request).value != ticket.mark):
            self._settle(ticket, None)
        else:
            ticket.has_arrived = is_good
            ticket.is_asked = True
            self._inquiries.run([partial(self._inquire, ticket)])

    def _inquire(self, ticket: S3Ticket) -> Command:
        """On another thread."""
        try:
            return partial(self._hear, ticket, self._store.bucket.num_bytes(self._store.name_of(ticket.key)))
        except BlockMissingError:
            return partial(self._hear, ticket, None)
        except Exception as error:
            return partial(self._hear, ticket, StoreError(f"block {ticket.key.hex()}: {error}"))

    def _hear(self, ticket: S3Ticket, answer: int | StoreError | None) -> None:
        """The object's size, None where it is not there, or why nobody says: what it means for the ticket."""
        ticket.is_asked = False
        if ticket.state is not IoState.IN_PROGRESS:
            return  # given up meanwhile
        if isinstance(answer, StoreError):
            self._settle(ticket, answer)
        elif ticket.is_write:
            self._try_again(ticket)
        elif answer is None:
            self._settle(ticket, BlockMissingError(f"block {ticket.key.hex()} is not stored"))
        elif answer != ticket.request.num_bytes:
            text = f"block {ticket.key.hex()}: object of {answer} bytes instead of {ticket.request.num_bytes}"
            self._settle(ticket, BlockCorruptError(text))
        elif ticket.has_arrived:
            self._settle(ticket, None)
        else:
            self._try_again(ticket)

    def _try_again(self, ticket: S3Ticket) -> None:
        """The server answers, so the transfer may have met a passing fault."""
        if ticket.num_attempts < MAX_ATTEMPTS:
            self._queue.appendleft(ticket)
            self._pump()
            return
        verb, where = "write" if ticket.is_write else "read", self._store.settings.where
        self._settle(ticket, StoreError(f"block {ticket.key.hex()}: {where} failed to {verb} it {MAX_ATTEMPTS} times"))

    def _rest(self, ticket: S3Ticket) -> None:
        """Nothing of the transfer moves any more: its handle and its registration go."""
        self._posted.pop(ticket, None)
        if ticket.handle is not None:
            try:
                ticket.handle.release()
            except Exception:  # NIXL keeps it and tries again when the agent ends
                logger.exception("NIXL does not release a transfer")
            ticket.handle = None
        if ticket.device_id:
            self._retired.append(self._region(ticket))
            ticket.device_id = 0
        if len(self._retired) >= _OBJECTS_PER_RETIREMENT or not self._posted:
            self._retire()

    def _retire(self) -> None:
        """Let NIXL forget the objects of finished transfers, several in one call."""
        retired, self._retired = self._retired, []
        if retired:
            try:
                self._agent.deregister_memory(self._agent.get_reg_descs(retired, "OBJ"), backends=_BACKENDS)
            except Exception:
                logger.exception("NIXL does not forget its objects")

    def _settle(self, ticket: S3Ticket, error: Exception | None) -> None:
        ticket.error = error
        ticket.state = IoState.DONE if error is None else IoState.FAILED

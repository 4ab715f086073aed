"""Moves blocks between storage and registered memory with NIXL: queued, posted, looked at and forgotten.

One transfer handle with one descriptor per object, since a failing object fails its whole handle. Objects are
registered and forgotten in batches, which costs a sixth. The thread that owns the agent does all that. Whatever else is
asked of storage may hang, and is done by other threads (dualpath.store.blocking_calls): storage that hangs thus costs
its own blocks their deadlines and nothing else.

A transfer in progress is never aborted, since nothing tells when an abort has taken effect: one that hangs holds its
ticket, its memory and its object, and ``release`` says so. Before and after its transfer a ticket holds no memory:
giving up costs nothing there. What kind of object it is decides how many may be under way; the rest wait in a queue.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from dualpath.core.errors import StoreError
from dualpath.core.runtime import Runtime
from dualpath.store.blocking_calls import BlockingCalls
from dualpath.store.contract import IoRequest, IoState, IoTicket
from dualpath.store.nixl_api import Agent, ensure_backend
from dualpath.store.ticket import Ticket

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 5.0
_POSTED_TOGETHER = 16  # posting may do a buffered file's I/O at once
_CHECKED_TOGETHER = 8
_RETIRED_TOGETHER = 16


@dataclass(slots=True, eq=False)
class NixlTicket(Ticket):
    """``handle`` is set while its transfer is posted and not over."""

    device_id: int = -1  # by which NIXL knows the object
    name: str = ""  # in storage, where NIXL is to find it
    handle: Any = None
    was_posted: bool = False  # NIXL took the transfer
    is_over: bool = False  # the transfer is, and what it leaves to do is not

    @property
    def region(self) -> tuple[int, int, int, str]:
        """The object as NIXL registers it."""
        return (0, self.request.num_bytes, self.device_id, self.name)


T = TypeVar("T", bound=NixlTicket)


class NixlIo(ABC, Generic[T]):
    """StoreIo over one NIXL agent, for one kind of object. Create it before the staging memory is registered: it makes
    sure of the backend.

    ``memory_type`` is NIXL's name for such objects, ``calls`` is what asks storage about them.
    """

    def __init__(
        self,
        kind: type[T],
        memory_type: str,
        url: str,
        agent: Agent,
        runtime: Runtime,
        calls: BlockingCalls,
        backend: str,
        backend_params: Mapping[str, str] | None,
    ) -> None:
        ensure_backend(agent, backend, backend_params)
        self._kind, self._memory_type, self._url = kind, memory_type, url
        self._agent, self._backends, self._runtime, self._calls = agent, [backend], runtime, calls
        self._queue: deque[T] = deque()
        self._ready: deque[T] = deque()  # to be posted
        self._moving: dict[T, float] = {}  # longest unseen first: since when
        self._retired: list[T] = []  # over, and still registered
        self._is_closing = False

    def submit_reads(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        return self._submit([self._kind(request.key, request, is_write=False) for request in requests])

    def submit_writes(self, requests: Sequence[IoRequest]) -> Sequence[IoTicket]:
        return self._submit([self._kind(request.key, request, is_write=True) for request in requests])

    def poll(self, ticket: Any) -> IoState:
        own: T = ticket
        if own.state is IoState.IN_PROGRESS:
            if own.handle is not None:
                self._check(own)
            elif own.is_over:
                self._retire()  # those that ended in the same look as this one go together
            else:
                self._check_some()
            self._advance()
        return own.state

    def release(self, ticket: Any) -> bool:
        """A write that was given up may appear all the same, whole, if its end has begun."""
        own: T = ticket
        if own.state is IoState.IN_PROGRESS:
            own.is_abandoned = True
            if own.handle is not None:
                self._check(own)
            else:
                own.settle(StoreError("given up"))
        return own.state is not IoState.IN_PROGRESS

    def stalled_s(self) -> float:
        return self._calls.stalled_s(tuple(self._moving.values()))

    def close(self) -> None:
        """Give up what is queued and wait, for a bounded time, for what is under way."""
        self._is_closing = True
        for ticket in self._queue:
            self.release(ticket)
        self._queue.clear()
        deadline_s = self._runtime.now_s() + CLOSE_TIMEOUT_S
        while (self._moving or self._calls.num_lively) and self._runtime.now_s() < deadline_s:
            self._advance()
            for ticket in tuple(self._moving):
                self.release(ticket)
            self._retire()
            with suppress(TimeoutError):
                self._runtime.wait(Future(), 0.001)
        num_hung = self._calls.close()
        if self._moving:
            logger.warning("%d transfers of %s did not end; their memory stays in use", self.num_posted, self._url)
        if num_hung:
            logger.warning("%d calls into %s do not return; their threads are left behind", num_hung, self._url)

    @property
    def num_posted(self) -> int:
        """Transfers that may touch memory, abandoned ones included."""
        return len(self._moving)

    # --- what kinds of objects differ in --------------------------------------------------------------------------

    @abstractmethod
    def _num_free(self) -> int:
        """How many more may be under way."""

    @abstractmethod
    def _prepare(self, tickets: Sequence[T]) -> None:
        """See to it that they get ready, with a device id."""

    def _before_post(self, ticket: T) -> None:
        """Last look at its memory."""

    def _fail(self, ticket: T, error: StoreError) -> None:
        """NIXL says that a transfer failed, or does not take it."""
        self._end(ticket, error)

    @abstractmethod
    def _at_rest(self, ticket: T, error: Exception | None) -> None:
        """Nothing moves its memory any more, or ever did. Settle it, or have that done."""

    def _forgotten(self, tickets: Sequence[T]) -> None:
        """No transfer and no registration names these objects any more."""

    # --- the life of a ticket -------------------------------------------------------------------------------------

    def _submit(self, tickets: list[T]) -> list[T]:
        self._queue.extend(tickets)
        self._advance()
        return tickets

    def _advance(self) -> None:
        """Take what other threads have done, prepare what there is room for, post a few."""
        self._calls.take()
        batch: list[T] = []
        room = self._num_free() if self._queue else 0
        while self._queue and len(batch) < room:
            ticket = self._queue.popleft()
            if ticket.state is IoState.IN_PROGRESS:  # not given up while it was queued
                batch.append(ticket)
        if batch:
            self._prepare(batch)
        self._post_some()

    def _post_some(self) -> None:
        batch = []
        for _ in range(min(len(self._ready), _POSTED_TOGETHER)):
            ticket = self._ready.popleft()
            if ticket.state is IoState.IN_PROGRESS and not self._is_closing:
                batch.append(ticket)
            else:
                ticket.is_abandoned = True
                ticket.settle(StoreError("given up"))
                self._forgotten([ticket])
        if batch:
            self._register(batch)

    def _register(self, batch: Sequence[T]) -> None:
        """In one call, or one by one if that fails; then post each transfer."""
        try:
            regions = [ticket.region for ticket in batch]
            self._agent.register_memory(regions, self._memory_type, backends=self._backends)
        except Exception as error:  # the binding's exceptions share no public base class
            if len(batch) > 1:
                for ticket in batch:
                    self._register([ticket])
            else:
                self._at_rest(batch[0], _explain(batch[0], error))
                self._forgotten(batch)
            return
        for ticket in batch:
            self._post(ticket)

    def _post(self, ticket: T) -> None:
        self._before_post(ticket)
        request, agent = ticket.request, self._agent
        try:
            local = agent.get_xfer_descs([(request.address, request.num_bytes, 0)], "DRAM")
            remote = agent.get_xfer_descs([(0, request.num_bytes, ticket.device_id)], self._memory_type)
            operation = "WRITE" if ticket.is_write else "READ"
            ticket.handle = agent.initialize_xfer(operation, local, remote, agent.name, b"", self._backends)
            self._moving[ticket] = self._runtime.now_s()
            status = agent.transfer(ticket.handle)
        except Exception as error:
            self._fail(ticket, _explain(ticket, error))
            return
        ticket.was_posted = True
        self._note(ticket, status)

    def _check_some(self) -> None:
        """Look at a few, in turn: a ticket that waits must not wait for somebody to poll those before it."""
        for ticket in list(islice(self._moving, _CHECKED_TOGETHER)):
            self._moving[ticket] = self._moving.pop(ticket)  # to the end of the line
            self._check(ticket)

    def _check(self, ticket: T) -> None:
        """Has it ended?"""
        try:
            status = self._agent.check_xfer_state(ticket.handle)
        except Exception as error:  # how the binding reports a failed transfer
            self._fail(ticket, _explain(ticket, error))
            return
        self._note(ticket, status)

    def _note(self, ticket: T, status: str) -> None:
        if status == "DONE":
            self._end(ticket, None)
        elif status != "PROC":
            self._end(ticket, StoreError(f"block {ticket.key.hex()}: transfer ended in state {status}"))

    def _end(self, ticket: T, error: Exception | None) -> None:
        """NIXL is done with the memory, and the transfer's handle goes."""
        self._moving.pop(ticket, None)
        if ticket.handle is not None:
            try:
                ticket.handle.release()
            except Exception:  # NIXL keeps it and tries again when the agent ends
                logger.exception("NIXL does not release a transfer")
            ticket.handle = None
        self._retired.append(ticket)
        ticket.is_over = True
        self._at_rest(ticket, error)
        if len(self._retired) >= _RETIRED_TOGETHER or not self._moving:
            self._retire()

    def _retire(self) -> None:
        """Let NIXL forget the objects of transfers that are over, several in one call."""
        retired, self._retired = self._retired, []
        if not retired:
            return
        try:
            regions = self._agent.get_reg_descs([ticket.region for ticket in retired], self._memory_type)
            self._agent.deregister_memory(regions, backends=self._backends)
        except Exception:
            logger.exception("NIXL does not forget its objects")
        self._forgotten(retired)


def _explain(ticket: Ticket, error: Exception) -> StoreError:
    return StoreError(f"block {ticket.key.hex()}: NIXL says {error!r}")

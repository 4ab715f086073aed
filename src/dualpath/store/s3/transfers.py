"""Moves blocks between S3 and registered memory with NIXL's OBJ backend.

A GET or a PUT for each. NIXL says only that a transfer failed, so another thread then asks the bucket why: gone, of
another size, or there after all, and then it is tried once more. The AWS client below NIXL does not retry: its second
attempt would continue in memory where the first one broke off.

NIXL would forget a transfer that is aborted while its request goes on writing memory. With the settings made here the
client gives up a read that stalls for 3 s and a write that stalls for 10 s (measured with a stopped server); as long as
a byte a second arrives it waits. At most ``2 * connections`` transfers are posted at once, so no more memory than that
can ever be held up.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from dualpath.core.errors import BlockCorruptError, BlockMissingError, StoreError
from dualpath.core.runtime import Command, Runtime
from dualpath.store.blocking_calls import BlockingCalls
from dualpath.store.contract import IoRequest, IoState
from dualpath.store.nixl_api import Agent
from dualpath.store.nixl_transfers import NixlIo, NixlTicket
from dualpath.store.s3.backend import backend_params, keep_forever, prepare_environment
from dualpath.store.s3.directory import S3Directory

MAX_ATTEMPTS = 2
MAX_INQUIRERS = 4
_device_ids = itertools.count(1)


@dataclass(slots=True, eq=False)
class S3Ticket(NixlTicket):
    mark: int = 0  # what a read's last byte was before
    num_attempts: int = 0
    has_arrived: bool = False  # a read's transfer ended well; its size is in doubt


def last_byte(request: IoRequest) -> ctypes.c_uint8:
    return ctypes.c_uint8.from_address(request.address + request.num_bytes - 1)


def set_mark(request: IoRequest, runtime: Runtime) -> int:
    """Put a random byte where the object's last one is to come. S3 delivers in order: once it has changed, all is here.

    A short object makes a good answer to a ranged GET, so nothing else would tell. One read in 256 keeps the mark by
    chance and asks the bucket in vain.
    """
    last = last_byte(request)
    last.value = runtime.random_bits(8)
    return last.value


class S3Io(NixlIo[S3Ticket]):
    """A write that was given up may still appear, whole: S3 knows no way back from a PUT."""

    def __init__(self, directory: S3Directory, agent: Agent, runtime: Runtime) -> None:
        settings = directory.settings
        prepare_environment(settings)
        calls = BlockingCalls(runtime, f"{agent.name}-s3", directory.try_write, max_threads=MAX_INQUIRERS)
        super().__init__(S3Ticket, "OBJ", directory.url, agent, runtime, calls, "OBJ", backend_params(settings))
        self._directory = directory
        self._max_posted = 2 * settings.connections

    def close(self) -> None:
        super().close()
        if self._moving:
            keep_forever(self._agent.agent, [ticket.handle for ticket in self._moving])

    def _num_free(self) -> int:
        return self._max_posted - len(self._moving) - len(self._ready)

    def _prepare(self, tickets: Sequence[S3Ticket]) -> None:
        for ticket in tickets:
            ticket.device_id, ticket.name = (
                next(_device_ids),
                self._directory.name_of(ticket.key, ticket.request.namespace_digest),
            )
        self._ready.extend(tickets)

    def _before_post(self, ticket: S3Ticket) -> None:
        if not ticket.is_write:
            ticket.mark = set_mark(ticket.request, self._runtime)
        ticket.num_attempts += 1

    def _at_rest(self, ticket: S3Ticket, error: Exception | None) -> None:
        """What is not clear yet is asked of the bucket."""
        if ticket.is_abandoned or not ticket.was_posted:
            ticket.settle(error)
        elif error is None and (ticket.is_write or last_byte(ticket.request).value != ticket.mark):
            ticket.settle(None)
        else:
            ticket.has_arrived = error is None
            self._calls.run([partial(self._inquire, ticket)])

    def _inquire(self, ticket: S3Ticket) -> Command:
        """On another thread."""
        try:
            return partial(self._hear, ticket, self._directory.bucket.num_bytes(ticket.name))
        except BlockMissingError:
            return partial(self._hear, ticket, None)
        except Exception as error:
            return partial(self._hear, ticket, StoreError(f"block {ticket.key.hex()}: {error}"))

    def _hear(self, ticket: S3Ticket, answer: int | StoreError | None) -> None:
        """The object's size, None where it is not there, or why nobody says: what it means for the ticket."""
        if ticket.state is not IoState.IN_PROGRESS:
            return  # given up meanwhile
        if isinstance(answer, StoreError):
            ticket.settle(answer)
        elif ticket.is_write:
            self._try_again(ticket)
        elif answer is None:
            ticket.settle(BlockMissingError(f"block {ticket.key.hex()} is not stored"))
        elif answer != ticket.request.num_bytes:
            text = f"block {ticket.key.hex()}: object of {answer} bytes instead of {ticket.request.num_bytes}"
            ticket.settle(BlockCorruptError(text))
        elif ticket.has_arrived:
            ticket.settle(None)
        else:
            self._try_again(ticket)

    def _try_again(self, ticket: S3Ticket) -> None:
        """The server answers, so the transfer may have met a passing fault."""
        if ticket.num_attempts < MAX_ATTEMPTS:
            self._retire()  # as the object that it was; it gets another device id
            ticket.was_posted = ticket.is_over = False
            self._queue.appendleft(ticket)
            return
        verb, where = "write" if ticket.is_write else "read", self._directory.settings.where
        ticket.settle(StoreError(f"block {ticket.key.hex()}: {where} failed to {verb} it {MAX_ATTEMPTS} times"))

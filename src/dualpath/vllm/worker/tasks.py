"""A node's requests as two threads see them: the control line's, which begins and releases, and vLLM's, which moves.

One lock says who is there. vLLM's thread pins a task while it looks up slots and submits transfers; a task that is
closed takes no new pins, and what it has sent is known to the last transfer. So a release never gives slots away that
somebody is about to use.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from dualpath.core.errors import DualPathError, EngineLostError, OtherWeightsError
from dualpath.core.ids import BlockKey, RequestId
from dualpath.protocol.api import DecodeOrder, DecodeStep, PrefillOrder
from dualpath.store.header import BlockName, Digests
from dualpath.traffic.contract import Transfer


def _future() -> Future[None]:
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()  # who stops waiting must not end it for others
    return future


@dataclass(slots=True, eq=False, kw_only=True)
class MovingTask:
    """``slots``: block of the prompt -> our staging slot. ``names``: of the blocks, where KV is verified end to end."""

    request_id: RequestId
    slots: dict[int, int]
    names: list[BlockName] = field(default_factory=list)
    transfers: list[Transfer[int]] = field(default_factory=list)
    num_pins: int = 0
    is_closed: bool = False
    is_stale: bool = False  # the model has got other weights since: nothing of it goes into vLLM's KV, or is stored
    unpinned: Future[None] = field(default_factory=_future)  # closed, and the last pin is gone

    @property
    def is_quiet(self) -> bool:
        """Nothing of it touches our memory any more, and nothing more is begun in its name at this moment."""
        return not self.num_pins and all(transfer.quiescent.done() for transfer in self.transfers)

    @property
    def is_at_rest(self) -> bool:
        """Nothing of it moves anywhere any more, and nothing will begin."""
        return self.is_closed and not self.num_pins and all(transfer.settled.done() for transfer in self.transfers)


@dataclass(slots=True, eq=False, kw_only=True)
class PrefillTask(MovingTask):
    """A prompt on its way to the decode buffer. ``done`` ends when it is complete there."""

    order: PrefillOrder
    digests: Digests  # [layer, block] of what was pushed
    pages: dict[int, int] = field(default_factory=dict)  # pushed block -> vLLM's block, whose page its header takes
    done: Future[None] = field(default_factory=_future)

    def end(self, error: DualPathError | None = None) -> None:
        """Idempotent: the first call says how it ended."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


@dataclass(slots=True, eq=False, kw_only=True)
class DecodeTask(MovingTask):
    """A request that decodes. What follows ``order`` is the event loop's alone."""

    order: DecodeOrder
    chain: list[BlockKey]  # its blocks' keys, the root first
    # None: look whether it is over
    steps: asyncio.Queue[DecodeStep | OtherWeightsError | None] = field(default_factory=asyncio.Queue)
    num_writes: int = 0  # that have not ended
    is_stopped: bool = False
    is_heard: bool = True  # somebody takes the steps

    @property
    def is_over(self) -> bool:
        return self.is_stopped and not self.num_writes and self.steps.empty()

    def post(self, step: DecodeStep | OtherWeightsError | None) -> None:
        if self.is_heard:
            self.steps.put_nowait(step)

    def stop_listening(self) -> None:
        self.is_heard = False
        while not self.steps.empty():
            self.steps.get_nowait()
            self.steps.task_done()


Task = TypeVar("Task", bound=MovingTask)


class Tasks(Generic[Task]):
    def __init__(self, namespace_digest: bytes = b"") -> None:
        """``namespace_digest``: of the weights that the model has."""
        self._lock = threading.Lock()
        self._start = self._digest = namespace_digest
        self._tasks: dict[RequestId, Task] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, task: Task, namespace_digest: bytes = b"") -> None:
        """``namespace_digest``: of the weights that it is for; none: those of the start. Raises OtherWeightsError where
        the model has others, and EngineLostError where a task of this id has not been released."""
        with self._lock:
            if (namespace_digest or self._start) != self._digest:
                raise OtherWeightsError(f"request {task.request_id} is for other weights than the model has")
            if task.request_id in self._tasks:
                raise EngineLostError(f"request {task.request_id} is here already")
            self._tasks[task.request_id] = task

    def all(self) -> list[Task]:
        with self._lock:
            return list(self._tasks.values())

    def get(self, request_id: RequestId) -> Task | None:
        return self._tasks.get(request_id)

    def pin(self, request_id: RequestId) -> Task | None:
        """The task, kept from being released until ``unpin``. None: it is not there, or closed, or stale."""
        with self._lock:
            task = self._tasks.get(request_id)
            if task is None or task.is_closed or task.is_stale:
                return None
            task.num_pins += 1
            return task

    def pin_again(self, task: Task) -> None:
        """By whoever holds a pin, for somebody else."""
        with self._lock:
            task.num_pins += 1

    def unpin(self, task: Task) -> None:
        with self._lock:
            task.num_pins -= 1
            is_over = task.is_closed and not task.num_pins
        if is_over:
            task.unpinned.set_result(None)

    @contextmanager
    def pinned(self, request_id: RequestId) -> Iterator[Task | None]:
        task = self.pin(request_id)
        try:
            yield task
        finally:
            if task is not None:
                self.unpin(task)

    def use_weights(self, namespace_digest: bytes) -> list[Task]:
        """From now on the model has these. Returns the tasks that are there, which are stale."""
        with self._lock:
            self._digest = namespace_digest
            for task in self._tasks.values():
                task.is_stale = True
            return list(self._tasks.values())

    def close(self, request_id: RequestId) -> Task | None:
        """No new pins. The task, if it is there."""
        with self._lock:
            task = self._tasks.get(request_id)
            if task is None or task.is_closed:
                return task
            task.is_closed = True
            is_over = not task.num_pins
        if is_over:
            task.unpinned.set_result(None)
        return task

    def forget(self, request_id: RequestId) -> None:
        """After ``close``, when it is at rest."""
        with self._lock:
            self._tasks.pop(request_id, None)

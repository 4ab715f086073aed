"""The request log: every running request and the most recent finished ones, newest first."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from itertools import islice

from dualpath.core.ids import RequestId
from dualpath.core.phase import Phase
from dualpath.core.request import RequestRecord
from dualpath.scheduler.job import Job

_log = logging.getLogger(__name__)


class RecordBook:
    """Event loop only."""

    def __init__(self, max_finished: int) -> None:
        self._max_finished = max_finished
        self._jobs: dict[RequestId, Job] = {}  # in order of arrival
        self._finished: deque[RequestId] = deque()
        self._listeners: list[Callable[[RequestRecord], None]] = []

    def listen(self, callback: Callable[[RequestRecord], None]) -> None:
        self._listeners.append(callback)

    def is_running(self, request_id: RequestId) -> bool:
        job = self._jobs.get(request_id)
        return job is not None and not job.is_over

    def add(self, job: Job) -> None:
        """A finished request of the same id is forgotten."""
        request_id = job.request.request_id
        if self._jobs.pop(request_id, None) is not None:
            self._finished.remove(request_id)
        self._jobs[request_id] = job

    def end(self, job: Job) -> None:
        """The job is over: tell the listeners, and forget the oldest finished one."""
        self._finished.append(job.request.request_id)
        if len(self._finished) > self._max_finished:
            del self._jobs[self._finished.popleft()]
        for listener in self._listeners:
            try:
                listener(job.record)
            except Exception:
                _log.exception("a listener failed on %s", job.request.request_id)

    def get(self, request_id: RequestId) -> RequestRecord | None:
        job = self._jobs.get(request_id)
        return None if job is None else job.current_record()

    def recent(self, limit: int) -> list[RequestRecord]:
        return [job.current_record() for job in islice(reversed(self._jobs.values()), max(limit, 0))]

    def count(self) -> tuple[int, int]:
        """(waiting for engines, being served)."""
        alive = [job for job in self._jobs.values() if not job.is_over]
        queued = sum(job.timeline.phase is Phase.QUEUED for job in alive)
        return queued, len(alive) - queued

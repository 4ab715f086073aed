"""The request log: every running request and the most recent finished ones, newest first.

Of a finished request its record alone is kept: prompts are a thousand times larger.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from dualpath.core.ids import RequestId
from dualpath.core.phase import TERMINAL, Phase
from dualpath.core.request import RecordAnswer, RecordQuery, RequestRecord
from dualpath.scheduler.job import Job

_log = logging.getLogger(__name__)


class RecordBook:
    """Event loop only."""

    def __init__(self, max_finished: int) -> None:
        self._max_finished = max_finished
        self._requests: dict[RequestId, Job | RequestRecord] = {}  # in order of arrival; records where they are over
        self._finished: deque[RequestId] = deque()
        self._listeners: list[Callable[[RequestRecord], None]] = []

    def listen(self, callback: Callable[[RequestRecord], None]) -> None:
        self._listeners.append(callback)

    def is_running(self, request_id: RequestId) -> bool:
        return isinstance(self._requests.get(request_id), Job)

    def add(self, job: Job) -> None:
        """A finished request of the same id is forgotten."""
        request_id = job.request.request_id
        if self._requests.pop(request_id, None) is not None:
            self._finished.remove(request_id)
        self._requests[request_id] = job

    def end(self, job: Job) -> None:
        """The job is over: keep its record, tell the listeners, and forget the oldest finished one."""
        request_id = job.request.request_id
        self._requests[request_id] = job.record
        self._finished.append(request_id)
        if len(self._finished) > self._max_finished:
            del self._requests[self._finished.popleft()]
        for listener in self._listeners:
            try:
                listener(job.record)
            except Exception:
                _log.exception("a listener failed on %s", request_id)

    def get(self, request_id: RequestId) -> RequestRecord | None:
        entry = self._requests.get(request_id)
        return None if entry is None else _record(entry)

    def find(self, query: RecordQuery, may_see: Callable[[str, RequestId], bool]) -> list[RequestRecord]:
        """Newest first. ``may_see``: whether a request is one of the viewer's."""
        ids = reversed(self._requests) if query.request_id is None else (query.request_id,)
        seen = (
            entry
            for request_id in ids
            if (entry := self._requests.get(request_id)) is not None
            and (query.viewer is None or may_see(query.viewer, request_id))
        )
        return [_record(entry) for entry in islice(seen, max(query.limit, 0))]

    def phases(self) -> dict[str, int]:
        """How many requests are in each phase now."""
        counts = {phase.value: 0 for phase in Phase if phase not in TERMINAL}
        for entry in self._requests.values():
            if isinstance(entry, Job) and (phase := entry.timeline.phase) is not None and not entry.is_over:
                counts[phase.value] += 1
        return counts

    def answer(self, query: RecordQuery, may_see: Callable[[str, RequestId], bool]) -> RecordAnswer:
        """As ``find``, and for who sees all requests how many there are."""
        return RecordAnswer(self.find(query, may_see), (), self.phases() if query.viewer is None else None)


def merged(answers: Sequence[RecordAnswer], limit: int) -> RecordAnswer:
    """Of several books."""
    records = newest([record for answer in answers for record in answer.records], limit)
    missing = sorted(name for answer in answers for name in answer.missing)
    told = [answer.in_phase for answer in answers if answer.in_phase is not None]
    in_phase = {phase: sum(counts[phase] for counts in told) for phase in told[0]} if told else None
    return RecordAnswer(records, tuple(missing), in_phase)


def newest(records: Iterable[RequestRecord], limit: int) -> list[RequestRecord]:
    return sorted(records, key=lambda record: record.arrived_unix_s, reverse=True)[:limit]


def _record(entry: Job | RequestRecord) -> RequestRecord:
    return entry.current_record() if isinstance(entry, Job) else entry

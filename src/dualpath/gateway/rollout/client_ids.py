"""By which ids clients know their requests: they may choose them, and abort by them. The scheduler's are others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from dualpath.core.ids import RequestId
from dualpath.gateway.errors import invalid

MAX_NAME_CHARS = 256
MAX_IDS_OF_NAME = 1024
MAX_IDS = 1 << 16  # of all names


class ClientIds:
    """The latest are remembered. An id may be used again, even at once: it then means all of them. Any thread."""

    def __init__(self) -> None:
        self._lock = Lock()  # long bodies are read in threads
        self._requests: OrderedDict[str, list[RequestId]] = OrderedDict()
        self._num_ids = 0

    def add(self, name: str, request_ids: Sequence[RequestId]) -> None:
        with self._lock:
            known = self._requests.pop(name, [])
            kept = [*known, *request_ids][-MAX_IDS_OF_NAME:]
            self._requests[name] = kept
            self._num_ids += len(kept) - len(known)
            while self._num_ids > MAX_IDS:
                self._num_ids -= len(self._requests.popitem(last=False)[1])

    def find(self, name: str) -> list[RequestId]:
        """The requests of this id; one of nobody's choosing is the scheduler's own."""
        with self._lock:
            return list(self._requests.get(name, ())) or [RequestId(name)]


def check_name(name: str | None, param: str) -> None:
    """Raises InvalidRequestError, which names the field."""
    if len(name or "") > MAX_NAME_CHARS:
        raise invalid(f"{param} must have at most {MAX_NAME_CHARS} characters", param)

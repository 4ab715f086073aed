"""Where a trajectory's requests go: to the replica that had the one before, a new one to the least loaded."""

from __future__ import annotations

from collections import Counter, OrderedDict

from dualpath.core.errors import DualPathError

MAX_KNOWN = 100_000  # trajectories; the one that has been silent for longest is forgotten first


class StickyPlacement:
    """Bookkeeping only: ``begin`` and ``end`` around each request."""

    def __init__(self, num_replicas: int, max_known: int = MAX_KNOWN) -> None:
        self._alive = dict.fromkeys(range(num_replicas))
        self._max_known = max_known
        self._known: OrderedDict[str, int] = OrderedDict()  # the latest last
        self._running: Counter[int] = Counter()
        self._num_placed: Counter[int] = Counter()

    @property
    def alive(self) -> list[int]:
        return list(self._alive)

    def begin(self, request_id: str) -> int:
        """The replica. Least requests that run, then fewest trajectories so far. Raises DualPathError: none is left."""
        replica = self._known.get(request_id)
        if replica not in self._alive:
            if not self._alive:
                raise DualPathError("no replica is left")
            replica = min(self._alive, key=lambda one: (self._running[one], self._num_placed[one]))
            self._num_placed[replica] += 1
        assert replica is not None
        self._known[request_id] = replica
        self._known.move_to_end(request_id)
        if len(self._known) > self._max_known:
            self._known.popitem(last=False)
        self._running[replica] += 1
        return replica

    def end(self, replica: int) -> None:
        self._running[replica] -= 1

    def lose(self, replica: int) -> None:
        """It gets nothing any more; its trajectories go on elsewhere."""
        self._alive.pop(replica, None)

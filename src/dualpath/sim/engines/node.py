"""What the engines of a node share: storage NIC, memory bandwidth, staging memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dualpath.core.ids import NodeId
from dualpath.sim.engines.fifo_link import FifoLink

if TYPE_CHECKING:
    from dualpath.sim.requests.request import Request


class StorageNic(FifoLink):
    """Reads, first come first served, with the reading queue that the policies look at and bytes per time window."""

    __slots__ = ("_ends", "_window_s", "queued_tokens", "windows")

    def __init__(self, bytes_per_s: float, window_s: float) -> None:
        super().__init__(bytes_per_s)
        self._window_s = window_s
        self._ends: deque[tuple[float, int]] = deque()  # of reads under way: (end, tokens)
        self.queued_tokens = 0  # of reads that are planned, some may still wait for staging memory, or under way
        self.windows: list[int] = []  # bytes whose transfer ended in each window

    def read(self, now_s: float, num_bytes: int, num_tokens: int) -> float:
        """When a read that was queued and may begin now has ended."""
        start_s = self.free_at_s if self.free_at_s > now_s else now_s  # FifoLink.send, written out
        self.num_bytes += num_bytes
        self.free_at_s = end_s = start_s + num_bytes / self.bytes_per_s
        self._ends.append((end_s, num_tokens))
        window, windows = int(end_s / self._window_s), self.windows
        if window >= len(windows):
            windows.extend([0] * (window + 1 - len(windows)))
        windows[window] += num_bytes
        return end_s

    def queue_tokens(self, now_s: float) -> int:
        """read_q: tokens of reads that have not ended."""
        ends = self._ends
        while ends and ends[0][0] <= now_s:
            self.queued_tokens -= ends.popleft()[1]
        return self.queued_tokens


class Staging:
    """Memory for KV, of a node or a device: who finds no room waits. First come, first served."""

    __slots__ = ("capacity_tokens", "peak_tokens", "used_tokens", "waiting")

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.used_tokens = 0
        self.peak_tokens = 0
        self.waiting: deque[tuple[Request, int]] = deque()

    def take(self, request: Request, num_tokens: int) -> bool:
        """False: the request waits in line until ``release`` gives it its turn."""
        used = self.used_tokens + num_tokens
        if self.waiting or used > self.capacity_tokens:
            self.waiting.append((request, num_tokens))
            return False
        self.used_tokens = used
        if used > self.peak_tokens:
            self.peak_tokens = used
        return True

    def release(self, num_tokens: int) -> Sequence[Request]:
        """Give back; the requests whose turn it is now have what they asked for."""
        self.used_tokens -= num_tokens
        if not self.waiting:
            return ()
        served = []
        while self.waiting and self.used_tokens + self.waiting[0][1] <= self.capacity_tokens:
            request, wanted = self.waiting.popleft()
            self.force(wanted)
            served.append(request)
        return served

    def force(self, num_tokens: int) -> None:
        """Take at once, room or not: what a forward brings must go somewhere. The line waits until it is given back."""
        self.used_tokens = used = self.used_tokens + num_tokens
        if used > self.peak_tokens:
            self.peak_tokens = used

    def give_up(self, request: Request) -> bool:
        """Leave the line; False: the request did not wait here."""
        entry = next((one for one in self.waiting if one[0] is request), None)
        if entry is None:
            return False
        self.waiting.remove(entry)
        return True


class Node:
    """What the engines of a node share."""

    __slots__ = ("dram", "name", "snic", "staging", "store_writes")

    def __init__(
        self, name: NodeId, snic: StorageNic, store_writes: FifoLink, dram: FifoLink, staging: Staging
    ) -> None:
        self.name = name
        self.snic = snic
        self.store_writes = store_writes
        self.dram = dram
        self.staging = staging

    def store(self, now_s: float, num_bytes: int) -> float:
        """When a write that comes now is on storage. ``FifoLink.send`` twice, written out."""
        writes, dram = self.store_writes, self.dram
        writes.num_bytes += num_bytes
        dram.num_bytes += num_bytes
        dram.free_at_s = (dram.free_at_s if dram.free_at_s > now_s else now_s) + num_bytes / dram.bytes_per_s
        start_s = writes.free_at_s if writes.free_at_s > now_s else now_s
        writes.free_at_s = end_s = start_s + num_bytes / writes.bytes_per_s
        return end_s

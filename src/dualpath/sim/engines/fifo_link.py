"""A link that serves one transfer after the other at full speed: when each ends is known at once, without an event.

Fair sharing and first come, first served move the same bytes in the same time; only who gets them first differs. That
is why the links of the simulator are of this kind; ``tests/sim/fair_link.py`` is there to check against.
"""

from __future__ import annotations


class FifoLink:
    """One direction of a NIC, or a memory bus. ``bytes_per_s`` may be ``inf``."""

    __slots__ = ("bytes_per_s", "free_at_s", "num_bytes")

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.free_at_s = 0.0  # end of everything sent so far
        self.num_bytes = 0  # sent so far

    def send(self, now_s: float, num_bytes: int) -> float:
        """When a transfer of at least a byte that joins the queue now has ended."""
        start_s = self.free_at_s if self.free_at_s > now_s else now_s
        self.num_bytes += num_bytes
        self.free_at_s = end_s = start_s + num_bytes / self.bytes_per_s
        return end_s

    @property
    def busy_s(self) -> float:
        """Time that everything sent so far takes."""
        return self.num_bytes / self.bytes_per_s


class ComputeNic:
    """A GPU's NIC: all that enters or leaves device memory, host-device copies included (section 5).

    ``out`` is what it reads from memory, ``into`` what it writes: the two directions of section 4.2's inequalities.
    """

    __slots__ = ("into", "out")

    def __init__(self, bytes_per_s: float) -> None:
        self.out = FifoLink(bytes_per_s)
        self.into = FifoLink(bytes_per_s)

    def send(self, now_s: float, out_bytes: int, into_bytes: int) -> float:
        """When a transfer of so many bytes each way, beginning now, has ended both ways.

        ``FifoLink.send`` twice, written out: this is called several times for every request.
        """
        end_s = now_s
        if out_bytes:
            link = self.out
            link.num_bytes += out_bytes
            done_s = (link.free_at_s if link.free_at_s > now_s else now_s) + out_bytes / link.bytes_per_s
            link.free_at_s = end_s = done_s
        if into_bytes:
            link = self.into
            link.num_bytes += into_bytes
            done_s = (link.free_at_s if link.free_at_s > now_s else now_s) + into_bytes / link.bytes_per_s
            link.free_at_s = done_s
            if done_s > end_s:
                end_s = done_s
        return end_s

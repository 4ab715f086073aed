"""A traffic manager that ends every transfer at once and moves nothing: the oracle of the comparisons runs on it.

Storage reads, host-device copies and transfers between engines end at once with zero bytes (paper section 7); nothing
reaches the store. Staging slots are granted as ever, so requests wait for the same memory. Since history is whatever
the memory held before, every answer is invalid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dualpath.core.ids import BlockKey, PeerId
from dualpath.traffic.contract import Transfer, Units
from dualpath.traffic.jobs import TransferJob
from dualpath.traffic.manager import TrafficManager


def _done() -> Transfer[int]:
    job = TransferJob(num_bytes=0)
    job.succeed()
    return job.transfer


class StillTrafficManager(TrafficManager):
    """Every submission succeeds before it returns."""

    def read_blocks(
        self,
        blocks: Sequence[tuple[BlockKey, int]],
        deadline_s: float | None = None,
        *,
        namespace_digest: bytes = b"",
    ) -> list[Transfer[int]]:
        return [_done() for _ in blocks]

    def write_blocks(
        self,
        blocks: Sequence[tuple[BlockKey, BlockKey, int]],
        deadline_s: float | None = None,
        *,
        have_headers: bool = False,
        namespace_digest: bytes = b"",
    ) -> list[Transfer[int]]:
        return [_done() for _ in blocks]

    def pull(
        self,
        peer: PeerId,
        local_region: str,
        local_units: Units,
        remote_region: str,
        remote_units: Units,
        deadline_s: float | None = None,
        after: Callable[[], None] | None = None,
    ) -> Transfer[int]:
        return _done()

    def push(
        self,
        peer: PeerId,
        local_region: str,
        local_units: Units,
        remote_region: str,
        remote_units: Units,
        deadline_s: float | None = None,
    ) -> Transfer[int]:
        return _done()

    def copy(
        self,
        src_region: str,
        src_units: Units,
        dst_region: str,
        dst_units: Units,
        after: Callable[[], None] | None = None,
    ) -> Transfer[int]:
        return _done()

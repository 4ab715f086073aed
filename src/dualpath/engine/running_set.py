"""Who waits for device memory, who has it, who gives it up: admission, growth and preemption in a decode engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dualpath.core.geometry import KvGeometry
from dualpath.engine.block_pool import BlockPool
from dualpath.engine.phases import DecodePhase
from dualpath.engine.sequence import Sequence


class RunningSet:
    """The decode engine's requests by what they do. Event loop only; the pool's blocks are handed out here alone.

    waiting -> joining (prompt being copied in) -> running -> leaving (ended, blocks still in use) -> gone
    """

    def __init__(self, pool: BlockPool, geometry: KvGeometry, max_requests: int) -> None:
        self._pool, self._geometry, self._max_requests = pool, geometry, max_requests
        self.waiting: list[Sequence] = []  # first come, first served
        self.joining: dict[Sequence, None] = {}
        self.running: list[Sequence] = []  # in order of admission
        self.leaving: dict[Sequence, None] = {}
        self.stepping: list[Sequence] = []  # in the step under way

    def __iter__(self) -> Iterator[Sequence]:
        return iter([*self.waiting, *self.joining, *self.running])

    def __len__(self) -> int:
        return len(self.waiting) + len(self.joining) + len(self.running)

    def admit(self) -> list[Sequence]:
        """Give waiting prompts device memory, leaving every running request room to grow by a block."""
        admitted = []
        while self.waiting and len(self.running) + len(self.joining) < self._max_requests:
            needed = self._geometry.blocks_for(self.waiting[0].num_kv + 1)
            if self._pool.num_free < needed + len(self.running) + len(self.joining):
                break
            seq = self.waiting.pop(0)
            blocks = self._pool.allocate(needed)
            assert blocks is not None
            seq.blocks = blocks
            seq.enter(DecodePhase.JOINING)
            self.joining[seq] = None
            admitted.append(seq)
        return admitted

    def make_room(self, preempt: Callable[[Sequence], None]) -> list[Sequence]:
        """Every request gets the block its next token needs; returns those that have it, the next step's batch.

        When memory is out, the newest give theirs up. A request sits a step out if blocks are on their way back.
        """
        for seq in list(self.running):
            while not seq.ended and not self._has_room(seq):
                new = self._pool.allocate(1, after=seq.blocks[-1])
                if new is not None:
                    seq.blocks.extend(new)
                elif self.leaving:
                    break
                else:
                    preempt(self.running[-1])
        self.stepping = [seq for seq in self.running if self._has_room(seq)]
        return self.stepping

    def remove(self, seq: Sequence) -> None:
        """It takes no further part; its blocks come back when ``free_if_unused`` finds them so."""
        for queue in (self.waiting, self.running):
            if seq in queue:
                queue.remove(seq)

    def free_if_unused(self, seq: Sequence) -> bool:
        """Give an ended request's blocks back once nothing computes on them and nothing copies them."""
        if not seq.ended or not seq.blocks:
            return False
        if seq.num_copies or seq in self.stepping:
            self.leaving[seq] = None
            return False
        self.leaving.pop(seq, None)
        self._pool.free(seq.blocks)
        seq.blocks = []
        return True

    def _has_room(self, seq: Sequence) -> bool:
        return seq.num_kv // self._geometry.block_tokens < len(seq.blocks)

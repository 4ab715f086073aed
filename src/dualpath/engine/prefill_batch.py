"""Prefill jobs, and what a forward batch of them moves: which Layer Blocks come in and which go out, per layer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dualpath.core.geometry import KvGeometry
from dualpath.core.ids import PeerId
from dualpath.core.request import TokenEvent
from dualpath.engine.batch import BatchLimits, Chunk, Quota, ReadyItem, pack
from dualpath.engine.output_state import OutputState
from dualpath.engine.phases import PrefillPhase, entered
from dualpath.engine.sampling import PromptLogprob
from dualpath.models.seam import PrefillItem
from dualpath.protocol.api import PrefillOrder
from dualpath.store.header import BlockName, Digests
from dualpath.traffic.contract import Units


@dataclass(slots=True, eq=False)
class PrefillJob:
    """A request on its way through prefill; its first ``num_done`` tokens have KV, in one of the two buffers.

    ``events`` says None when its first forward begins, then the first token or an error.
    """

    order: PrefillOrder
    slots: dict[int, int]  # block -> prefill-buffer slot of the hits read on this side
    num_done: int
    events: asyncio.Queue[TokenEvent | Exception | None] = field(default_factory=asyncio.Queue)
    phase: PrefillPhase = PrefillPhase.WAITING
    has_begun: bool = False
    hits_pushed: bool = False
    alone: bool = False  # was in a batch that failed: runs by itself now
    output: OutputState | None = None  # where logits are shaped
    prompt_logprobs: list[PromptLogprob] = field(default_factory=list)  # so far, where they are wanted
    names: Sequence[BlockName] = ()  # of the prompt's blocks, where KV is verified end to end
    digests: Digests | None = None  # [layer, block] of what has KV, once a forward has succeeded

    @property
    def num_left(self) -> int:
        return len(self.order.request.prompt_token_ids) - self.num_done

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.order.request.sampling.num_prompt_logprobs is not None

    @property
    def has_ended(self) -> bool:
        return self.phase is PrefillPhase.ENDED

    def compute(self) -> None:
        """A forward begins that it is part of."""
        self.phase = entered(self.phase, PrefillPhase.COMPUTING)
        if not self.has_begun:
            self.has_begun = True
            self.events.put_nowait(None)

    def wait(self) -> None:
        self.phase = entered(self.phase, PrefillPhase.WAITING)

    def end(self, event: TokenEvent | Exception | None = None) -> None:
        """With what its listener is told; None: there is none any more. Idempotent."""
        if not self.has_ended:
            self.phase = entered(self.phase, PrefillPhase.ENDED)
            if event is not None:
                self.events.put_nowait(event)

    def item(self, chunk: Chunk, block_tokens: int) -> PrefillItem:
        tokens = self.order.request.prompt_token_ids[self.num_done : self.num_done + chunk.num_new]
        num_logits = chunk.num_new if self.wants_prompt_logprobs else 1
        return PrefillItem(tokens, self.num_done, chunk.first_block * block_tokens, num_logits)


@dataclass(frozen=True, slots=True)
class Flow:
    """One set of Layer Blocks that moves in every layer: workspace block i to or from staging slot i."""

    peer: PeerId | None  # None: this engine's own staging buffer
    workspace_blocks: Units
    slots: Units

    @staticmethod
    def of(peer: PeerId | None, pairs: Sequence[tuple[int, int]]) -> Flow:
        columns = np.array(pairs, dtype=np.int32).reshape(-1, 2)
        return Flow(peer, columns[:, 0].copy(), columns[:, 1].copy())


Batch = Sequence[tuple[PrefillJob, Chunk]]


def choose(ready: Sequence[PrefillJob], limits: BatchLimits, quota: Quota) -> list[tuple[PrefillJob, Chunk]]:
    """The next forward batch, first come first served; a job that must run alone gets a batch of its own."""
    end = next((i for i, job in enumerate(ready) if job.alone), len(ready))
    candidates = ready[: max(end, 1)]
    items, logits_left = [], limits.max_logits
    for job in candidates:
        num_new = min(job.num_left, logits_left) if job.wants_prompt_logprobs else job.num_left
        if not num_new:
            break
        items.append(ReadyItem(job.num_done, num_new))
        logits_left -= num_new if job.wants_prompt_logprobs else 0
    chunks = pack(items, limits, quota)
    return [(candidates[chunk.index], chunk) for chunk in chunks]


def flows(batch: Batch, geometry: KvGeometry) -> tuple[list[Flow], list[Flow]]:
    """(loads, pushes): local hits, then one flow per decode engine each way.

    Loads bring every token that has KV; pushes take what the decode buffer lacks: the blocks with new tokens and, once,
    the hits read on the prefill side.
    """
    local: list[tuple[int, int]] = []
    pulls: dict[PeerId, list[tuple[int, int]]] = {}
    pushes: dict[PeerId, list[tuple[int, int]]] = {}
    for job, chunk in batch:
        peer, remote, first = job.order.decode_peer, job.order.decode_slots, chunk.first_block
        for block in range(geometry.blocks_for(job.num_done)):
            if block in job.slots:
                local.append((first + block, job.slots[block]))
            else:
                pulls.setdefault(peer, []).append((first + block, remote[block]))
        new = range(job.num_done // geometry.block_tokens, geometry.blocks_for(job.num_done + chunk.num_new))
        hits = () if job.hits_pushed else sorted(job.slots)
        pushes.setdefault(peer, []).extend((first + block, remote[block]) for block in (*hits, *new))
    loads = [Flow.of(None, local)] if local else []
    loads += [Flow.of(peer, pairs) for peer, pairs in pulls.items()]
    return loads, [Flow.of(peer, pairs) for peer, pairs in pushes.items()]


def blocks_used(batch: Batch, geometry: KvGeometry) -> int:
    """Workspace blocks per layer that the batch occupies."""
    return sum(geometry.blocks_for(job.num_done + chunk.num_new) for job, chunk in batch)

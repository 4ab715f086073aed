"""Prefill engines in groups that compute in lockstep: forward batches under the compute quota, streamed layer by layer.

A forward takes as long as the longest of: the group's compute, and the KV that any NIC or memory bus involved must move
for it, since both overlap layer by layer (arXiv 2602.21548, section 4.1). An engine that does not stream layers loads
before it computes and pushes afterwards.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop

from dualpath.core.ids import EngineId
from dualpath.core.plan import Role
from dualpath.scheduler.policy.engine_load import EngineLoad, group_of
from dualpath.scheduler.policy.quota import ComputeQuota
from dualpath.sim.cost import PrefillCost
from dualpath.sim.engines.fifo_link import ComputeNic
from dualpath.sim.engines.node import Node, Staging
from dualpath.sim.requests.request import Request


class PrefillEngine(EngineLoad):
    """One GPU, with its load as the policies see it."""

    __slots__ = (
        "bytes_per_token",
        "group",
        "is_lost",
        "kv",
        "moved_bytes",
        "nic",
        "node",
        "ready",
        "unfinished",
    )

    def __init__(self, engine_id: EngineId, node: Node, nic: ComputeNic, kv: Staging, bytes_per_token: int) -> None:
        super().__init__(engine_id, group_of(node.name, Role.PREFILL))
        self.node = node
        self.nic = nic
        self.kv = kv  # device memory for whole requests, where layers are not streamed
        self.bytes_per_token = bytes_per_token
        self.ready: list[tuple[float, int, Request]] = []  # heap by the time at which their hits are there
        self.unfinished: deque[Request] = deque()  # chunked, first in line
        self.group = _NO_GROUP
        self.moved_bytes = 0  # KV through its NIC for the forward that runs, in the direction that has more
        self.is_lost = False


Chunk = tuple[Request, int]  # and how many of its tokens


class PrefillGroup:
    """Engines that wait for each other in every layer, and whose leader fetches for all."""

    __slots__ = (
        "_cost",
        "_max_batch_tokens",
        "_quota",
        "attention_s",
        "batches",
        "busy_s",
        "engines",
        "index",
        "is_running",
        "max_kv_tokens",
        "num_forwards",
        "wake_s",
    )

    def __init__(
        self,
        index: int,
        engines: Sequence[PrefillEngine],
        cost: PrefillCost,
        quota: ComputeQuota,
        max_batch_tokens: int,
        max_kv_tokens: int,
    ) -> None:
        self.index = index
        self.engines = list(engines)
        self.is_running = False
        self.wake_s = math.inf  # when it has asked to be woken; inf: it has not
        self.batches: list[list[Chunk]] = []  # of the forward that runs, one for each engine
        self.attention_s: list[float] = []  # predicted for each of them
        self.busy_s = 0.0
        self.num_forwards = 0
        self.max_kv_tokens = max_kv_tokens  # of one engine's forward: what two layers leave room for
        self._cost, self._quota, self._max_batch_tokens = cost, quota, max_batch_tokens
        for engine in engines:
            engine.group = self

    def next_ready_s(self) -> float:
        """When the next request can be computed; inf: none is on its way here."""
        if any(engine.unfinished for engine in self.engines):
            return 0.0
        return min([engine.ready[0][0] for engine in self.engines if engine.ready], default=math.inf)

    def choose(self, now_s: float) -> bool:
        """Fill ``batches`` from what is ready; False: nothing is."""
        self.batches, self.attention_s = [], []
        is_any = False
        for engine in self.engines:
            batch, attention_s = self._pack(engine, now_s)
            self.batches.append(batch)
            self.attention_s.append(attention_s)
            is_any = is_any or bool(batch)
        return is_any

    def num_new_tokens(self) -> int:
        """Of the chosen batches."""
        return sum([num_new for batch in self.batches for _, num_new in batch])

    def compute_s(self) -> float:
        """Of the chosen batches."""
        return self._cost.group_forward_s(max(self.attention_s), self.num_new_tokens(), len(self.engines))

    def _pack(self, engine: PrefillEngine, now_s: float) -> tuple[list[Chunk], float]:
        """First come, first served; packing ends with the request that would exceed a limit, which is chunked."""
        unfinished, ready = engine.unfinished, engine.ready
        if not unfinished and (not ready or ready[0][0] > now_s):
            return [], 0.0
        fill = self._quota.begin()
        tokens_left, kv_left = self._max_batch_tokens, self.max_kv_tokens
        batch: list[Chunk] = []
        while unfinished or (ready and ready[0][0] <= now_s):
            request = unfinished[0] if unfinished else ready[0][2]
            computed = request.computed
            wanted = num_left = request.prompt - computed
            if wanted > tokens_left:
                wanted = tokens_left
            if wanted > kv_left - computed:
                wanted = kv_left - computed
            num_new = fill.take(computed, wanted) if wanted > 0 else 0
            if num_new <= 0:
                break
            if unfinished:
                unfinished.popleft()
            else:
                heappop(ready)
            batch.append((request, num_new))
            tokens_left -= num_new
            kv_left -= computed + num_new
            if num_new < num_left:
                break
        return batch, fill.used_s


_NO_GROUP = PrefillGroup(-1, (), PrefillCost(), ComputeQuota(PrefillCost(), 0.0), 0, 0)


@dataclass(slots=True)
class Moved:
    """KV tokens that crossed the compute network."""

    pulled: int = 0  # decode to prefill
    pushed: int = 0  # prefill to decode


def move(
    now_s: float,
    engine: PrefillEngine,
    batch: list[Chunk],
    moved: Moved,
    *,
    streams: bool = True,
    pulls: bool = True,
    pushes: bool = True,
) -> float:
    """Move the KV of one engine's forward, before it, after it or both; when all of it has arrived.

    What is pulled is history: hits read on this side from the node's own buffer, by loopback through the
    engine's NIC, everything else over the network from the decode node's buffer; where layers are not streamed, what
    earlier chunks brought is still there. What is pushed is what the decode buffer lacks: new tokens, and once the hits
    read on this side (section 4.1).
    """
    local = pulled = pushed = 0
    end_s = now_s
    size = engine.bytes_per_token
    for request, num_new in batch:
        remote = push = 0
        if pulls and (streams or request.started_s < 0):
            local += request.prefill_hit
            remote = request.computed - request.prefill_hit
        if pushes:
            push = num_new if request.pushed else num_new + request.prefill_hit
            request.pushed = True
        pulled += remote
        pushed += push
        if remote or push:
            decode = request.decode
            done_s = decode.send(now_s, remote * size, push * size)
            if done_s > end_s:
                end_s = done_s
            done_s = decode.node.dram.send(now_s, (remote + push) * size)
            if done_s > end_s:
                end_s = done_s
    engine.moved_bytes = (local + (pushed if pushed > pulled else pulled)) * size
    moved.pulled += pulled
    moved.pushed += pushed
    nic_s = engine.nic.send(now_s, (local + pushed) * size, (local + pulled) * size)
    local_s = engine.node.dram.send(now_s, local * size) if local else now_s
    if nic_s > end_s:
        end_s = nic_s
    return local_s if local_s > end_s else end_s

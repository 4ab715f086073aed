"""Decode engines: continuous batching as processor sharing, kept by a clock that counts tokens instead of seconds.

All requests of a batch get one token a step, so one number says how far everybody is: the tokens that a request which
never ends would have. A request joins at some count and ends ``generate - 1`` tokens later, whatever happens meanwhile;
only the speed of the clock, the length of a step, changes with the batch. That costs O(log batch) for each request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Final

from dualpath.core.ids import EngineId
from dualpath.scheduler.policy.cost import DecodeCost
from dualpath.scheduler.policy.engine_load import EngineLoad, GroupId
from dualpath.sim.engines.collectives import Collectives
from dualpath.sim.engines.fifo_link import ComputeNic
from dualpath.sim.engines.node import Node, Staging
from dualpath.sim.requests.request import Request

ROUNDING_TOKENS: Final = 1e-6  # the clock is a sum of many small floats


class DecodeEngine(EngineLoad):
    """One GPU, with its load as the policies see it."""

    __slots__ = (
        "batch_context",
        "batch_requests",
        "clock",
        "collectives",
        "is_lost",
        "kv",
        "nic",
        "node",
    )

    def __init__(self, engine_id: EngineId, node: Node, nic: ComputeNic, kv: Staging) -> None:
        super().__init__(engine_id, GroupId(engine_id), kv.capacity_tokens)
        self.node = node
        self.nic = nic
        self.kv = kv  # device memory of the requests that are decoded
        self.batch_requests = 0  # being decoded
        self.batch_context = 0  # their context tokens, on the average of their stay
        self.clock: DecodeClock = _NO_CLOCK
        self.collectives: Collectives | None = None  # beside which KV moves; None: there are none
        self.is_lost = False

    def send(self, now_s: float, out_bytes: int, into_bytes: int) -> float:
        """When KV that leaves and enters through its NIC from now on has moved. Steps meanwhile are longer by what
        their collectives wait, and KV gets what these leave."""
        collectives = self.collectives
        if collectives is not None and self.batch_requests:
            clock, model_bytes = self.clock, collectives.decode_bytes * self.batch_requests
            contended = collectives.contended_bytes(max(out_bytes, into_bytes), model_bytes, clock.step_s)
            clock.stall(now_s, collectives.delay_s(contended))
            left = collectives.left(model_bytes, clock.step_s)
            out_bytes, into_bytes = int(out_bytes / left), int(into_bytes / left)
        return self.nic.send(now_s, out_bytes, into_bytes)


class DecodeClock:
    """The batches of engines that step together: one engine, or several whose experts are spread over all of them."""

    __slots__ = (
        "_cost",
        "_counts_context",
        "_engines",
        "_largest",
        "_last_s",
        "_running",
        "_sequence",
        "busy_s",
        "due_s",
        "step_s",
        "tokens",
    )

    def __init__(self, engines: Sequence[DecodeEngine], cost: DecodeCost) -> None:
        self._engines = list(engines)
        self._cost = cost
        self._counts_context = cost.per_context_token_s > 0
        self._running: list[tuple[float, int, Request]] = []  # heap by count at which the request ends
        self._sequence = 0
        self._largest = 0  # requests in the largest batch
        self._last_s = 0.0
        self.tokens = 0.0  # the count
        self.step_s = 0.0
        self.busy_s = 0.0
        self.due_s = math.inf  # when somebody has asked to be told; inf: nobody
        for engine in engines:
            engine.clock = self

    def join(self, now_s: float, request: Request) -> bool:
        """The prompt's KV is in device memory. True: it is the next to end, as far as is known now.

        Otherwise whoever was next still is, only later.
        """
        running, engine, generate = self._running, request.decode, request.generate
        if running:
            elapsed_s = now_s - self._last_s
            self.busy_s += elapsed_s
            self.tokens += elapsed_s / self.step_s
        self._last_s = now_s
        engine.batch_requests = batch = engine.batch_requests + 1
        engine.batch_context += request.prompt + (generate >> 1)
        self._sequence += 1
        heappush(running, (self.tokens + generate - 1, self._sequence, request))
        is_largest = batch > self._largest
        if is_largest:
            self._largest = batch
        if is_largest or self._counts_context:
            self._retime()
        request.step_s = self.step_s
        return running[0][2] is request

    def next_end_s(self) -> float:
        """When the next request ends if none joins before; inf: the batch is empty."""
        if not self._running:
            return math.inf
        left = self._running[0][0] - self.tokens
        return self._last_s + (left * self.step_s if left > 0 else 0.0)

    def finish(self, now_s: float) -> list[Request]:
        """Requests that have all their tokens by now."""
        self._advance(now_s)
        running, reached, largest = self._running, self.tokens + ROUNDING_TOKENS, self._largest
        ended: list[Request] = []
        while running and running[0][0] <= reached:
            request = heappop(running)[2]
            self._leave(request)
            ended.append(request)
        if self._largest != largest or (ended and self._counts_context):
            self._retime()
        return ended

    def stall(self, now_s: float, stall_s: float) -> None:
        """The steps that run take so much longer, all together."""
        self._advance(now_s)
        if self._running:
            self.tokens -= stall_s / self.step_s

    def drop(self, now_s: float, request: Request) -> int:
        """Take a request out; how many tokens it has beyond the first."""
        self._advance(now_s)
        index = next(i for i, entry in enumerate(self._running) if entry[2] is request)
        left = self._running.pop(index)[0] - self.tokens
        heapify(self._running)
        self._leave(request)
        self._retime()
        return max(0, min(request.generate - 1, int(request.generate - 1 - left)))

    def _leave(self, request: Request) -> None:
        engine = request.decode
        batch = engine.batch_requests
        engine.batch_requests = batch - 1
        engine.batch_context -= request.prompt + (request.generate >> 1)
        if batch == self._largest:
            self._largest = max([one.batch_requests for one in self._engines])

    def _advance(self, now_s: float) -> None:
        if self._running:
            elapsed_s = now_s - self._last_s
            self.busy_s += elapsed_s
            self.tokens += elapsed_s / self.step_s
        self._last_s = now_s

    def _retime(self) -> None:
        """Everybody waits for the slowest engine."""
        cost = self._cost
        if self._counts_context:
            self.step_s = max([cost.step_s(e.batch_requests, e.batch_context) for e in self._engines])
        else:
            self.step_s = cost.base_s + cost.per_request_s * self._largest


_NO_CLOCK = DecodeClock((), DecodeCost())

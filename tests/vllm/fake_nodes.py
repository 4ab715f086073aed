"""What ``dualpath.vllm.line`` asks of a node, over the scheduler's fake engines: they check slots, reads and releases.

``worker`` is where node and server of one fake vLLM meet: the server tells it what a request's steps have done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from tests.scheduler.fakes import FakeDecode, FakeEngine, FakePrefill, Writer
from tests.scheduler.fixtures import BLOCK, NAMESPACE

from dualpath.core.errors import ConfigError
from dualpath.core.ids import BlockKey, RequestId
from dualpath.core.keys import root_key
from dualpath.core.weights import Weights
from dualpath.protocol.api import DecodeOrder, DecodeStep, PrefillOrder

DOOR_KEY = "a key"


@dataclass
class Worker:
    """By the id that travels in ``kv_transfer_params``."""

    computed: dict[RequestId, asyncio.Event] = field(default_factory=dict)  # prefill: all is pushed
    running: dict[RequestId, DecodeRun] = field(default_factory=dict)
    num_hit_tokens: dict[RequestId, int] = field(default_factory=dict)
    has: Weights = field(default_factory=Weights)


class _Node(FakeEngine):
    worker: Worker

    async def weights(self) -> tuple[Weights, str]:
        self.check_alive()
        return self.worker.has, self.worker.has.directory or NAMESPACE.model_fingerprint

    async def name_weights(self, weights: Weights) -> str:
        if weights.directory == "/none":
            raise ConfigError("/none: there is no such directory")
        return weights.directory or NAMESPACE.model_fingerprint

    async def door_key(self) -> str:
        return DOOR_KEY


class PrefillNode(_Node, FakePrefill):
    async def hand_over(self, order: PrefillOrder) -> AsyncIterator[bool]:
        request_id = order.request.request_id
        self.active.add(request_id)
        done = self.worker.computed[request_id] = asyncio.Event()
        self.worker.num_hit_tokens[request_id] = order.num_hit_tokens
        try:
            self._check(order)
            yield True
            await self._until(done)
            await self._move(order)
        finally:
            self.active.discard(request_id)
            del self.worker.computed[request_id]

    async def _until(self, done: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (done, self.troubled)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        self.check_alive()


@dataclass(eq=False)
class DecodeRun:
    order: DecodeOrder
    writer: Writer
    steps: asyncio.Queue[DecodeStep | None] = field(default_factory=asyncio.Queue)

    def computed(self, tokens: Sequence[int]) -> None:
        """The KV of all these is there. A write ends some time later."""
        parent = self.writer.parent
        for key in self.writer.completed(tokens):
            self.steps.put_nowait(DecodeStep(writing=(key,), parents=(parent,)))


class DecodeNode(_Node, FakeDecode):
    async def persist(self, order: DecodeOrder) -> AsyncIterator[DecodeStep]:
        request_id = order.request.request_id
        self.active.add(request_id)
        run = self.worker.running[request_id] = DecodeRun(order, Writer(self, order))
        parents = (root_key(NAMESPACE, order.request.cache_salt), *order.keys)
        first = order.num_hit_tokens // BLOCK
        try:
            yield self._begin(run, order.keys[first:], parents[first:-1])
            while (step := await run.steps.get()) is not None:
                self.check_alive()
                yield step
                yield run.writer.settled()
            while run.writer.tasks:
                await asyncio.wait(run.writer.tasks)
                yield run.writer.settled()
        finally:
            run.writer.cancel()
            self.active.discard(request_id)
            del self.worker.running[request_id]

    def _begin(self, run: DecodeRun, keys: tuple[BlockKey, ...], parents: tuple[BlockKey, ...]) -> DecodeStep:
        run.writer.start(keys)
        return DecodeStep(writing=keys, parents=parents)

    async def stop(self, request_id: RequestId) -> None:
        """What was told before is told before this."""
        run = self.worker.running.get(request_id)
        if run is not None:
            run.steps.put_nowait(None)
            while not run.steps.empty():  # noqa: ASYNC110
                await asyncio.sleep(0)

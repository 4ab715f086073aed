"""What everything in a node shares: its traffic manager, vLLM's KV, digests, deadlines and the loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from dualpath.core.keys import Namespace, root_key
from dualpath.core.runtime import Runtime, Worker, run_then
from dualpath.engine.integrity import Integrity
from dualpath.protocol.api import DecodeOrder, PrefillOrder
from dualpath.store.header import Digests
from dualpath.traffic.contract import Units
from dualpath.traffic.manager import TrafficManager
from dualpath.traffic.staging import DEVICE
from dualpath.vllm.messages import Load
from dualpath.vllm.settings import ConnectorSettings
from dualpath.vllm.worker.kv_region import VllmKv
from dualpath.vllm.worker.weights import NodeWeights

T = TypeVar("T")
Order = TypeVar("Order", PrefillOrder, DecodeOrder)


class WholeBlocks(Integrity):
    """Digests of Layer Blocks from end to end, however much of them is in use.

    Where heads lie outside of tokens, the rows of a partly filled block are no prefix of it. Its other bytes are what
    vLLM left there; they travel and are compared like the rest.
    """

    def num_bytes(self, num_tokens: int) -> int:
        return self._geometry.layer_block_bytes


@dataclass(frozen=True, slots=True, eq=False)
class NodeParts:
    """Any thread, but for what they say of themselves."""

    settings: ConnectorSettings
    namespace: Namespace
    kv: VllmKv
    traffic: TrafficManager
    integrity: WholeBlocks | None  # None: storage reads are verified, and nothing else
    runtime: Runtime
    loop: asyncio.AbstractEventLoop  # the control line's
    after_kernels: Worker  # waits for what a GPU computes; on a CPU it has nothing to do
    weights: NodeWeights
    door_key: str = ""  # to the door in the API server
    whole: Namespace | None = None  # the server's, of which ``namespace`` is a rank's part; None: it is all of it
    num_ranks: int = 1
    stores: bool = True  # False: another rank stores the same

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run it on the node's loop, from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def own(self, order: Order) -> Order:
        """An order to the server, as this rank carries it out: keys are the server's, names of objects the rank's own.

        Raises OtherWeightsError.
        """
        if self.whole is None:
            return order
        root = order.root or root_key(self.whole, order.request.cache_salt)
        return replace(order, root=root, namespace_digest=self.weights.own(order.namespace_digest))

    def digests(self, units: Units) -> Digests:
        """Of these units of vLLM's KV. On a thread for such work: the checks', or where transfers end."""
        num_bytes = np.full(len(units), self.kv.geometry.layer_block_bytes, dtype=np.int64)
        return self.traffic.checks.digests(DEVICE, units, num_bytes)

    def when_computed(self, work: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
        """``work`` when the kernels launched so far have ended; ``then`` gets the error that ended it, or None.

        On a CPU both before this returns; on a GPU on a thread of the node, in order, and compute goes on meanwhile.
        """
        device = self.kv.region.storage.device
        if device.type != "cuda":
            run_then(work, then)
            return
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))

        def wait_and_work() -> None:
            event.synchronize()
            work()

        if not self.after_kernels.run(wait_and_work, then):
            then(RuntimeError("the node is closing"))

    def wait_for_zeroing(self, loads: Sequence[Load]) -> None:
        """vLLM may just be zeroing the blocks that are about to be loaded. Its thread, on its stream."""
        device = self.kv.region.storage.device
        if loads and device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()

    def wait_for_kernels(self) -> None:
        """Until all that ``when_computed`` was given has ended. vLLM's thread. Raises TimeoutError."""
        if self.kv.region.storage.device.type == "cuda":
            done: Future[None] = Future()
            self.when_computed(lambda: None, lambda _: done.set_result(None))
            self.runtime.wait(done, self.settings.transfer_s)

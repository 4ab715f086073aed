"""One prompt's hit on its way into vLLM's KV, layer by layer: from our own buffer and from the decode side's.

A few layers are under way while one computes. Where KV is verified, a layer counts as there when it has been compared
with the digests in its blocks' headers. vLLM's thread only.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future
from functools import partial

import numpy as np

from dualpath.core.errors import DualPathError, EngineBugError, EngineLostError, TransferTimeoutError
from dualpath.core.ids import PeerId
from dualpath.store.header import Digests
from dualpath.traffic.contract import Transfer, Units
from dualpath.traffic.staging import DEVICE, HEADERS, PAGES, STAGING
from dualpath.vllm.messages import Load
from dualpath.vllm.worker.parts import NodeParts
from dualpath.vllm.worker.tasks import PrefillTask

_log = logging.getLogger(__name__)


class LayerLoads:
    """Never raises: ``error`` says why the blocks of the load are of no use. ``end`` when the step is over."""

    def __init__(self, parts: NodeParts, load: Load, task: PrefillTask | None) -> None:
        """``task``: pinned by the caller for the step; None: there is none of this request (any more)."""
        self.load = load
        self.error: Exception | None = None if task is not None else EngineLostError(f"no order for {load.xid}")
        self._parts, self._task = parts, task
        num_layers, num_blocks = parts.kv.geometry.num_layers, len(load.block_ids)
        self._transfers: list[list[Transfer[int]]] = [[] for _ in range(num_layers)]
        self._header_pulls: list[Transfer[int]] = []
        self._expected: Digests = np.zeros((num_layers, num_blocks), dtype=np.uint64)
        self._found: Digests = np.zeros((num_layers, num_blocks), dtype=np.uint64)
        self._num_started = self._num_waited = 0
        if task is not None:
            self._begin(task)

    def _begin(self, task: PrefillTask) -> None:
        blocks = np.arange(self.load.first_block, self.load.first_block + len(self.load.block_ids))
        is_own = np.isin(blocks, list(task.order.prefill_blocks))
        self._own: Units = np.flatnonzero(is_own).astype(np.int32)  # indexes into the load's blocks
        self._far: Units = np.flatnonzero(~is_own).astype(np.int32)
        self._ids = np.array(self.load.block_ids, dtype=np.int32)
        try:
            self._slots = np.array(
                [
                    task.slots[b] if own else task.order.decode_slots[b]
                    for b, own in zip(blocks.tolist(), is_own, strict=True)
                ],
                dtype=np.int32,
            )
            self._load_headers(task)
            self._advance(task, self._parts.settings.layers_ahead)
        except (DualPathError, ValueError, LookupError) as error:
            self._fail(error)

    def _load_headers(self, task: PrefillTask) -> None:
        integrity, traffic = self._parts.integrity, self._parts.traffic
        if integrity is None:
            return
        names = task.names[self.load.first_block : self.load.first_block + len(self.load.block_ids)]
        headers = [integrity.slot_header(self._slots[i]) for i in self._own]
        self._expected[:, self._own] = integrity.digests_in(headers, [names[i] for i in self._own]).T
        if not len(self._far):
            return

        def take() -> None:
            pages = [traffic.page(int(self._ids[i])) for i in self._far]
            self._expected[:, self._far] = integrity.digests_in(pages, [names[i] for i in self._far]).T

        ids, slots, limit_s = self._ids[self._far], self._slots[self._far], self._parts.settings.transfer_s
        pull = traffic.pull(task.order.decode_peer, PAGES, ids, HEADERS, slots, limit_s, take)
        self._header_pulls.append(self._note(task, pull))

    def _advance(self, task: PrefillTask, end: int) -> None:
        """Have the layers before ``end`` under way."""
        for layer in range(self._num_started, min(end, len(self._transfers))):
            for peer, places in ((None, self._own), (task.order.decode_peer, self._far)):
                if len(places):
                    self._transfers[layer].append(self._note(task, self._move(peer, places, layer)))
            self._num_started = layer + 1

    def _move(self, peer: PeerId | None, places: Units, layer: int) -> Transfer[int]:
        traffic = self._parts.traffic
        local = self._parts.kv.units(self._ids[places], layer)
        remote = traffic.staging_units(self._slots[places], layer)
        after = None if self._parts.integrity is None else partial(self._look, layer, places, local)
        if peer is None:
            return traffic.copy(STAGING, remote, DEVICE, local, after)
        return traffic.pull(peer, DEVICE, local, STAGING, remote, self._parts.settings.transfer_s, after)

    def _look(self, layer: int, places: Units, units: Units) -> None:
        """A layer has arrived."""
        self._found[layer, places] = self._parts.digests(units)

    def _note(self, task: PrefillTask, transfer: Transfer[int]) -> Transfer[int]:
        task.transfers.append(transfer)
        return transfer

    def wait(self, layer: int) -> None:
        """Until the layer is there, or the load has failed."""
        if self.error is not None or self._task is None:
            return
        self._num_waited += 1
        try:
            self._advance(self._task, layer + self._parts.settings.layers_ahead + 1)
            for transfer in (*self._header_pulls, *self._transfers[layer]):
                self._wait(transfer.future)
            if self._parts.integrity is not None and (self._found[layer] != self._expected[layer]).any():
                num_wrong = int((self._found[layer] != self._expected[layer]).sum())
                text = f"layer {layer}: {num_wrong} blocks are not as they were made"
                raise self._parts.traffic.checks.corrupt(text, num_wrong)
        except (DualPathError, ValueError) as error:
            self._fail(error)

    def _wait(self, future: Future[int]) -> None:
        limit_s = 2 * self._parts.settings.transfer_s  # each has a deadline of its own; local copies have none
        try:
            self._parts.runtime.wait(future, limit_s)
        except TimeoutError:
            raise TransferTimeoutError(f"a transfer did not end within {limit_s:g} s") from None

    def _fail(self, error: Exception) -> None:
        _log.warning("request %s: its hit could not be loaded and is computed: %s", self.load.xid, error)
        self.error = error

    def end(self) -> None:
        """After a failure: until nothing writes these blocks any more, for vLLM computes them now.

        A pull that does not come to rest by itself does when its peer is removed.
        """
        if self.error is None and self._num_waited != len(self._transfers):
            self._fail(EngineBugError(f"vLLM has waited for {self._num_waited} of {len(self._transfers)} layers"))
        if self.error is None or self._task is None:
            return
        for transfer in [*self._header_pulls, *(t for layer in self._transfers for t in layer)]:
            try:
                self._parts.runtime.wait(transfer.quiescent, self._parts.settings.transfer_s)
            except TimeoutError:
                self._parts.traffic.remove_peer(self._task.order.decode_peer)
                self._parts.runtime.wait(transfer.quiescent, self._parts.settings.transfer_s)

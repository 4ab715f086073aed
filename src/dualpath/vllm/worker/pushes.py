"""A prompt's Layer Blocks from vLLM's KV into the decode side's staging slots, as its layers are computed.

A block goes when it is complete, once. When the prompt is, the headers of all that went follow, and then whoever waits
on the control line is told, without a step of vLLM. vLLM's thread, but for what waits for kernels and ``_complete``.
"""

from __future__ import annotations

import logging
from functools import partial

import numpy as np

from dualpath.core.errors import DualPathError, EngineLostError, PathBrokenError, TransferError
from dualpath.traffic.contract import Transfer
from dualpath.traffic.staging import DEVICE, HEADERS, PAGES, STAGING
from dualpath.vllm.messages import Push
from dualpath.vllm.worker.parts import NodeParts
from dualpath.vllm.worker.tasks import PrefillTask, Tasks

_log = logging.getLogger(__name__)


class StepPush:
    """One request's part in one step. ``task`` is pinned by the caller for the step."""

    def __init__(self, parts: NodeParts, tasks: Tasks[PrefillTask], push: Push, task: PrefillTask) -> None:
        self.push, self.task = push, task
        self._parts, self._tasks = parts, tasks
        order, block_tokens = task.order, parts.kv.geometry.block_tokens
        num_hits = order.num_hit_tokens // block_tokens
        blocks = range(push.first_block, len(push.block_ids))
        wanted = [b for b in blocks if b >= num_hits or b in order.prefill_blocks]  # the decode side read the others
        self._blocks = np.array(wanted, dtype=np.int32)
        self._ids = np.array([push.block_ids[b] for b in wanted], dtype=np.int32)
        self._slots = np.array([order.decode_slots[b] for b in wanted], dtype=np.int32)
        self._num_layers = 0  # pushed so far

    def push_layer(self, layer: int) -> None:
        """The layer's KV has been computed, or will be by the kernels launched so far."""
        self._num_layers += 1
        if not len(self._blocks):
            return
        if layer == 0:
            self.task.pages.update(zip(self._blocks.tolist(), self._ids.tolist(), strict=True))
        self._tasks.pin_again(self.task)
        self._parts.when_computed(partial(self._send, layer), self._sent)

    def _send(self, layer: int) -> None:
        parts, task = self._parts, self.task
        units = parts.kv.units(self._ids, layer)
        remote = parts.traffic.staging_units(self._slots, layer)
        peer, limit_s = task.order.decode_peer, parts.settings.transfer_s
        task.transfers.append(parts.traffic.push(peer, DEVICE, units, STAGING, remote, limit_s))
        if parts.integrity is not None:

            def digest() -> None:
                task.digests[layer, self._blocks] = parts.digests(units)

            task.transfers.append(parts.traffic.checks.submit(digest))

    def _sent(self, error: Exception | None) -> None:
        if error is not None:
            self.task.end(EngineLostError(f"{self.task.request_id}: a layer could not be pushed: {error!r}"))
        self._tasks.unpin(self.task)

    def end_step(self) -> None:
        """The forward has ended. After the prompt's last block: end the task when all of it has arrived."""
        if self._num_layers != self._parts.kv.geometry.num_layers:
            text = f"{self._num_layers} layers were computed, vLLM's KV has {self._parts.kv.geometry.num_layers}"
            self.task.end(EngineLostError(f"{self.task.request_id}: {text}"))
        elif self.push.is_last:
            self._tasks.pin_again(self.task)  # until the headers have gone
            self._parts.when_computed(self._complete, lambda _: None)  # behind what still waits for kernels

    def _complete(self) -> None:
        self._parts.spawn(_complete(self._parts, self._tasks, self.task))


def take_back(parts: NodeParts, task: PrefillTask) -> None:
    """What was pushed so far is void: wait until none of it can arrive any more, so that it can be pushed again."""
    parts.wait_for_kernels()
    end_s = parts.runtime.now_s() + 2 * parts.settings.transfer_s
    for transfer in task.transfers:
        try:
            parts.runtime.wait(transfer.settled, max(0.0, end_s - parts.runtime.now_s()))
        except TimeoutError:
            task.end(PathBrokenError(f"{task.request_id}: void pushes to {task.order.decode_peer} do not end"))
            return
    task.transfers.clear()
    task.pages.clear()


async def _complete(parts: NodeParts, tasks: Tasks[PrefillTask], task: PrefillTask) -> None:
    peer = task.order.decode_peer
    error: DualPathError | None = None
    try:
        for transfer in list(task.transfers):
            await transfer
        if parts.integrity is not None and task.pages:
            await _push_headers(parts, task)
    except TransferError as failure:
        error = PathBrokenError(f"{task.request_id}: pushes to {peer} failed: {failure}")
    except Exception as failure:  # whatever it is, somebody waits for the end
        error = EngineLostError(f"{task.request_id}: handing over to {peer} failed: {failure!r}")
    finally:
        tasks.unpin(task)
    if error is not None:
        _log.warning("%s", error)
    task.end(error)


def _push_headers(parts: NodeParts, task: PrefillTask) -> Transfer[int]:
    """Of all blocks that went: what they are, and how their layers were made."""
    assert parts.integrity is not None
    for block, page in task.pages.items():
        parts.traffic.page(page)[:] = parts.integrity.header(task.names[block], task.digests[:, block])
    pages = np.array(list(task.pages.values()), dtype=np.int32)
    slots = np.array([task.order.decode_slots[block] for block in task.pages], dtype=np.int32)
    limit_s = parts.settings.transfer_s
    headers = parts.traffic.push(task.order.decode_peer, PAGES, pages, HEADERS, slots, limit_s)
    task.transfers.append(headers)
    return headers

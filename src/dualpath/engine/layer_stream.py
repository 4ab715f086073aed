"""Layerwise prefill: history streams in and new KV streams out layer by layer, beside the compute.

Two workspaces alternate (layer l uses l % 2). While layer l computes, layer l+1 loads; when l is handed back its new
rows are pushed to the decode buffers, and once they have left, layer l+2 loads into the same memory (paper section 4).
``WholeStream`` is what that is compared with: a workspace for every layer, all loaded before, all pushed after.

Where KV is verified end to end, history counts as there when it has been compared with its digests, and the next layer
is loaded into memory whose new rows have been digested.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np
import torch

from dualpath.core.errors import TransferTimeoutError
from dualpath.core.ids import PeerId
from dualpath.core.runtime import Runtime
from dualpath.engine.forward_digests import ForwardDigests
from dualpath.engine.prefill_batch import Flow
from dualpath.engine.trace import ChromeTrace
from dualpath.models.compute_stream import ComputeStream, HostStream
from dualpath.traffic.contract import Transfer, Units
from dualpath.traffic.manager import TrafficManager

NUM_WORKSPACES = 2


class WorkspaceStream:
    """One forward batch's ``LayerStream`` (see dualpath.models.seam). Built by the engine, used by its model thread.

    ``loads`` bring history into the workspace, ``pushes`` take new rows (and hits read on this side) to decode buffers.
    After the forward, ``finish`` waits for the last pushes; after any exception, ``abandon`` waits for quiescence.
    """

    def __init__(
        self,
        traffic: TrafficManager,
        workspace: torch.Tensor,  # uint8 [num_workspaces, blocks, block_tokens, bytes_per_token_layer]
        first_unit: int,  # of the workspace in the device region
        num_layers: int,
        loads: Sequence[Flow],
        pushes: Sequence[Flow],
        runtime: Runtime,
        deadline_s: float,
        trace: ChromeTrace | None = None,
        track: str = "prefill",
        digests: ForwardDigests | None = None,
        compute: ComputeStream | None = None,
    ) -> None:
        self._compute = compute or HostStream()
        self._traffic, self._digests = traffic, digests
        self._workspace, self._first_unit = workspace, first_unit
        self._num_workspaces = workspace.shape[0]
        self._num_layers = num_layers
        self._loads, self._pushes = loads, pushes
        self._runtime = runtime
        self._deadline_s = deadline_s
        self._trace, self._track = trace, track
        self._started: list[Future[None]] = [Future() for _ in range(num_layers)]
        self._load_transfers: list[list[Transfer[int]]] = [[] for _ in range(num_layers)]
        self._push_transfers: list[list[Transfer[int]]] = [[] for _ in range(num_layers)]
        self._digesting: list[Transfer[int]] = []  # each layer's new rows
        self._header_pushes: list[tuple[PeerId, Transfer[int]]] = []
        self._lock = threading.Lock()  # a layer is started as a whole, or not at all once the stream is closed
        self._closed = self._abandoned = False
        self._posts: list[Future[None]] = [Future() for _ in range(num_layers)]  # done: a layer's pushes are under way
        self._acquired_at_s = 0.0
        self.loaded_s = self.begun_s = runtime.now_s()  # when the last layer's history had come
        self.first_push_s: float | None = None
        self.push_s = 0.0  # after the last layer, until all new rows had left
        self.stall_s = [0.0] * num_layers  # per layer, how long the compute stood still for its history
        self._header_loads = digests.load_headers(deadline_s) if digests is not None else []
        for layer in range(min(self._num_workspaces, num_layers)):
            self._start_layer(layer)

    def acquire(self, layer: int) -> torch.Tensor:
        start_s = self._runtime.now_s()
        if layer:
            self._span(f"compute layer {layer - 1}", "compute", self._acquired_at_s, start_s)
        try:
            self._runtime.wait(self._started[layer], self._deadline_s)
        except TimeoutError:
            # The pushes that free this workspace did not end: surface their error, which has its own deadline.
            self._wait(self._push_transfers[layer - self._num_workspaces])
            text = f"layer {layer} did not begin to load within {self._deadline_s} s"
            raise TransferTimeoutError(text) from None
        self._wait(self._push_transfers[layer - self._num_workspaces] if layer >= self._num_workspaces else [])
        self._wait([*self._load_transfers[layer], *self._header_loads])
        if self._digests is not None:
            self._digests.compare(layer)
        self._acquired_at_s = self._runtime.now_s()
        self.stall_s[layer] += self._acquired_at_s - start_s
        self.loaded_s = self._acquired_at_s
        if self._acquired_at_s - start_s > 20e-6:
            self._span(f"wait for layer {layer}", "compute", start_s, self._acquired_at_s)
        return self._workspace[layer % self._num_workspaces].view(-1, self._workspace.shape[-1])

    def release(self, layer: int) -> None:
        """The pushes begin when the layer's kernels have ended; the model's thread does not wait for that."""
        self._compute.after(partial(self._post, layer), partial(self._end_post, layer))
        if self._posts[layer].done():
            self._posts[layer].result()  # what went wrong, if it is known already

    def _post(self, layer: int) -> None:
        with self._lock:
            if self._abandoned:
                return
            busy = self._push_layer(layer)
        follower = layer + self._num_workspaces
        if follower >= self._num_layers:
            return
        if not busy:
            self._start_layer(follower)
            return
        pending = _Countdown(len(busy), lambda: self._start_layer(follower))
        for transfer in busy:
            transfer.future.add_done_callback(partial(self._left, pending))

    def _push_layer(self, layer: int) -> list[Transfer[int]]:
        """What reads the layer's workspace from now on."""
        transfers = self._push_transfers[layer]
        if self.first_push_s is None:
            self.first_push_s = self._runtime.now_s()
        for flow in self._pushes:
            transfers.append(self._push(flow, layer))
        if self._digests is None:
            return list(transfers)
        self._digesting.append(self._digests.make(layer, self._units(self._digests.new_blocks, layer)))
        return [*transfers, self._digesting[-1]]

    def _end_post(self, layer: int, error: Exception | None) -> None:
        follower = layer + self._num_workspaces
        if error is None:
            self._posts[layer].set_result(None)
            return
        self._posts[layer].set_exception(error)
        if follower < self._num_layers and not self._started[follower].done():
            self._started[follower].set_exception(error)

    def _left(self, pending: _Countdown, ended: Future[int]) -> None:
        """A push that fails may read its workspace still: nothing is loaded there any more. ``acquire`` says why."""
        if ended.exception() is not None:
            with self._lock:
                self._closed = True
        pending.hit()

    def finish(self) -> None:
        """Wait until every push has arrived. Raises TransferError. Model thread."""
        self._compute_ended()
        computed_s = self._runtime.now_s()
        self._push_rest()
        self.push_s = self._runtime.now_s() - computed_s

    def _push_rest(self) -> None:
        self._end_pushes()

    def _compute_ended(self) -> None:
        self._span(f"compute layer {self._num_layers - 1}", "compute", self._acquired_at_s, self._runtime.now_s())

    def _end_pushes(self) -> None:
        for post in self._posts:
            self._runtime.wait(post, self._deadline_s * 2)
        if self._digests is not None:
            self._wait(self._digesting)
            for push in self._digests.push_headers(self._deadline_s):
                self._header_pushes.append(push)  # one by one: what has begun is known, whatever comes up
        for transfers in self._push_transfers[-self._num_workspaces :]:
            self._wait(transfers)
        self._wait([transfer for _, transfer in self._header_pushes])

    def abandon(self, deadline_s: float) -> bool:
        """After a failure: start no more layers, wait until no kernel and no transfer touches the workspace. False: too
        late, a transfer does.
        """
        with self._lock:
            self._closed = self._abandoned = True
        self._compute.drain()
        end_s = self._runtime.now_s() + deadline_s
        headers = [*self._header_loads, *(transfer for _, transfer in self._header_pushes)]
        for transfer in [t for ts in (headers, *self._load_transfers, *self._push_transfers) for t in ts]:
            try:
                self._runtime.wait(transfer.quiescent, max(0.0, end_s - self._runtime.now_s()))
            except TimeoutError:
                return False
        return True

    def unsettled(self) -> dict[PeerId, list[Transfer[int]]]:
        """By peer, the pushes that may still write there. Once nothing more is pushed."""
        found: dict[PeerId, list[Transfer[int]]] = {}
        pushes = list(self._header_pushes)
        for transfers in self._push_transfers:
            for flow, transfer in zip(self._pushes, transfers, strict=False):  # fewer where submitting one has failed
                assert flow.peer is not None
                pushes.append((flow.peer, transfer))
        for peer, transfer in pushes:
            if not transfer.settled.done():
                found.setdefault(peer, []).append(transfer)
        return found

    def _start_layer(self, layer: int) -> None:
        """Submit the layer's loads. Model thread, or the traffic thread when the last push of layer - 2 has ended."""
        with self._lock:
            if not self._closed:
                for flow in self._loads:
                    self._load_transfers[layer].append(self._load(flow, layer))
        self._started[layer].set_result(None)

    def _load(self, flow: Flow, layer: int) -> Transfer[int]:
        local = self._units(flow.workspace_blocks, layer)
        remote = self._traffic.staging_units(flow.slots, layer)
        after = None if self._digests is None else partial(self._digests.look, layer, flow.workspace_blocks, local)
        if flow.peer is None:
            return self._traffic.copy("staging", remote, "device", local, after)
        return self._traffic.pull(flow.peer, "device", local, "staging", remote, self._deadline_s, after)

    def _push(self, flow: Flow, layer: int) -> Transfer[int]:
        assert flow.peer is not None
        local = self._units(flow.workspace_blocks, layer)
        remote = self._traffic.staging_units(flow.slots, layer)
        return self._traffic.push(flow.peer, "device", local, "staging", remote, self._deadline_s)

    def _units(self, workspace_blocks: Units, layer: int) -> Units:
        base = self._first_unit + (layer % self._num_workspaces) * self._workspace.shape[1]
        return workspace_blocks + np.int32(base)

    def _wait(self, transfers: Sequence[Transfer[int]]) -> None:
        limit_s = self._deadline_s * 2  # a transfer between engines ends at its own deadline, a local copy has none
        try:
            for transfer in transfers:
                self._runtime.wait(transfer.future, limit_s)
        except TimeoutError:
            raise TransferTimeoutError(f"a transfer did not end within {limit_s} s") from None

    def _span(self, name: str, track: str, start_s: float, end_s: float) -> None:
        if self._trace is not None:
            self._trace.span(self._track, track, name, start_s, end_s)


class WholeStream(WorkspaceStream):
    """Without layer streaming (the paper's Basic): no transfer runs beside the compute.

    Needs as many workspaces as layers. The first ``acquire`` waits for every layer's history; ``finish`` pushes every
    layer's rows and waits for them.
    """

    def acquire(self, layer: int) -> torch.Tensor:
        if layer == 0:
            assert self._num_workspaces == self._num_layers
            start_s = self._runtime.now_s()
            for transfers in self._load_transfers:
                self._wait(transfers)
            self.stall_s[0] += self._runtime.now_s() - start_s
        return super().acquire(layer)

    def release(self, layer: int) -> None:
        """The rows stay where they are until the forward has ended."""

    def _push_rest(self) -> None:
        for layer in range(self._num_layers):
            super().release(layer)
        self._end_pushes()


class _Countdown:
    """Calls ``then`` at the last of ``count`` hits, whichever thread it comes from."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._count, self._then = count, then
        self._lock = threading.Lock()

    def hit(self) -> None:
        with self._lock:
            self._count -= 1
            last = self._count == 0
        if last:
            self._then()

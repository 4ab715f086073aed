"""The life of a simulated request, step 5 of protocol.api: forwards, and the hand-over to the decode engine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dualpath.scheduler.policy.systems import SystemPolicy
from dualpath.sim.engines.collectives import Collectives
from dualpath.sim.engines.prefill import PrefillGroup, move
from dualpath.sim.requests.agenda import NOTHING, Event, Events
from dualpath.sim.requests.events import ForwardEnd, HalfWay, Wake
from dualpath.sim.requests.request import Request

if TYPE_CHECKING:
    from dualpath.sim.requests.life import Life


class PrefillSteps:
    """What happens on prefill engines."""

    def __init__(self, life: Life, policy: SystemPolicy, reserves: bool, collectives: Collectives | None) -> None:
        self._life = life
        self._collectives = None if policy.skips_io else collectives
        self._streams, self._skips_io = policy.streams_layers, policy.skips_io
        self._stages_late = not reserves and not policy.skips_io
        self._stages_by_layer = self._stages_late and policy.streams_layers

    # -- 5: forward ---------------------------------------------------------------------------------------------------

    def begin_forward(self, group: PrefillGroup, now_s: float) -> Events:
        """Compute what is ready, or wait for the next."""
        if not group.choose(now_s):
            group.wake_s = group.next_ready_s()
            return (Wake(group.wake_s, self._life, group),) if group.wake_s < math.inf else NOTHING
        group.wake_s = math.inf
        group.is_running = True
        group.num_forwards += 1
        loaded_s = now_s if self._skips_io else self._load(group, now_s)
        compute_s = group.compute_s()
        if self._collectives is not None:
            compute_s += self._delay_s(self._collectives, group, compute_s)
        end_s = max(loaded_s, now_s + compute_s) if self._streams else loaded_s + compute_s
        for batch in group.batches:
            for request, _ in batch:
                if request.started_s < 0:
                    self._start(request, now_s)
        group.busy_s += compute_s
        self._life.observer.forward(group, now_s, end_s)
        end = ForwardEnd(end_s, self._life, group)
        return (HalfWay((now_s + end_s) / 2, self._life, group), end) if self._stages_by_layer else (end,)

    def _start(self, request: Request, now_s: float) -> None:
        """Its first forward: where whole requests are moved, the decode buffer takes the whole prompt from now on."""
        request.started_s = now_s
        if self._stages_late and not self._stages_by_layer:
            self._stage_whole(request)

    def _stage_whole(self, request: Request) -> None:
        more = self._life.reader.prompt_tokens(request) - request.staged
        if more:
            request.staged += more
            request.decode.node.staging.force(more)

    def half_way(self, group: PrefillGroup, now_s: float) -> Events:
        """Layer after layer leaves the prefill buffers and fills the decode buffers, at an even pace: moving all of it
        in the middle of the forward takes as much memory for as long as moving a layer at a time."""
        events: list[Event] = []
        block = self._life.block_tokens
        for batch in group.batches:
            for request, num_new in batch:
                if request.is_over:
                    continue
                whole = -(-request.prompt // block) * block  # ``_stage_whole``, written out
                if whole != request.staged:
                    request.decode.node.staging.force(whole - request.staged)
                    request.staged = whole
                if request.prefill_staged and request.computed + num_new >= request.prompt:
                    events += self._leave_staging(request, now_s)
        return events

    def _load(self, group: PrefillGroup, now_s: float) -> float:
        """When the batches' KV has moved: in both directions, where that overlaps with compute."""
        end_s, moved = now_s, self._life.observer.moved
        model_bytes = self._model_bytes(group)
        for engine, batch in zip(group.engines, group.batches, strict=True):
            if not batch:
                continue
            if model_bytes:
                engine.nic.send(now_s, model_bytes, model_bytes)  # comes first; without classes both end as late
            moved_s = move(now_s, engine, batch, moved, streams=self._streams, pushes=self._streams)
            if moved_s > end_s:
                end_s = moved_s
        return end_s

    def _model_bytes(self, group: PrefillGroup) -> int:
        """Of collectives, on each NIC of the group."""
        if self._collectives is None or not self._streams:
            return 0
        return int(self._collectives.prefill_bytes * group.num_new_tokens() / len(group.engines))

    def _delay_s(self, collectives: Collectives, group: PrefillGroup, compute_s: float) -> float:
        """What the group's bursts wait for KV, where that moves beside them: the slowest engine's."""
        model_bytes = self._model_bytes(group)
        kv_bytes = max(
            [engine.moved_bytes for engine, batch in zip(group.engines, group.batches, strict=True) if batch]
        )
        contended = collectives.contended_bytes(kv_bytes, model_bytes, compute_s)
        return collectives.delay_s(min(model_bytes, contended))

    # -- 6: hand-over -------------------------------------------------------------------------------------------------

    def end_forward(self, group: PrefillGroup, now_s: float) -> Events:
        """First tokens; what was chunked is first in line."""
        group.is_running = False
        events: list[Event] = []
        for engine, batch in zip(group.engines, group.batches, strict=True):
            pushed_s = now_s
            if batch and not self._streams and not self._skips_io:
                pushed_s = move(now_s, engine, batch, self._life.observer.moved, pulls=False)
            for request, num_new in batch:
                if request.is_over:
                    continue
                request.computed += num_new
                if request.computed < request.prompt:
                    engine.unfinished.append(request)
                else:
                    events += self._hand_over(request, now_s, pushed_s)
        group.batches = []
        events += self.begin_forward(group, now_s)
        events += self._life.fetch_due(now_s)
        return events

    def _hand_over(self, request: Request, now_s: float, pushed_s: float) -> Events:
        """The prompt is complete in the decode buffer, or will be once pushed; its first token goes to the client."""
        life = self._life
        request.handed_over_s = now_s
        if request.first_token_s < 0:
            request.first_token_s = now_s
            life.observer.first_token(request)
        events, taken = self.leave(request, now_s), life.decode.take(request, now_s, pushed_s)
        return [*events, *taken] if events else taken

    def leave(self, request: Request, now_s: float) -> Events:
        """Give the prefill engine's memory back; others may have waited for it."""
        life, engine = self._life, request.prefill
        life.placer.release_prefill(request)
        events = self._leave_staging(request, now_s) if request.prefill_staged else NOTHING
        if not self._streams:
            served = engine.kv.release(life.reader.prompt_tokens(request))
            if served:
                events = [*events, *life.prefill_memory_free(served, now_s)]
        return events

    def _leave_staging(self, request: Request, now_s: float) -> Events:
        """Give the prefill buffer back; others may have waited for it."""
        if not request.prefill_staged:
            return NOTHING
        served = request.prefill.node.staging.release(request.prefill_staged)
        request.prefill_staged = 0
        return self._life.prefill_staging_free(served, now_s) if served else NOTHING

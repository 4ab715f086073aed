"""The life of a simulated request, steps 6 and 7 of protocol.api: decoded, its whole blocks stored, all released."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dualpath.scheduler.policy.systems import SystemPolicy
from dualpath.sim.engines.decode import DecodeClock
from dualpath.sim.requests.agenda import NOTHING, Event, Events
from dualpath.sim.requests.events import DecodeDue, Join, Written
from dualpath.sim.requests.request import Request
from dualpath.sim.spec import SchedulerSpec

if TYPE_CHECKING:
    from dualpath.sim.requests.life import Life


class DecodeSteps:
    """What happens on decode engines."""

    def __init__(
        self, life: Life, policy: SystemPolicy, settings: SchedulerSpec, kv_bytes_per_token: int, block_bytes: int
    ) -> None:
        self._life = life
        self._skips_io = policy.skips_io
        self._handover_s = 0.0 if policy.skips_io else settings.handover_s
        self._block_tokens = settings.block_tokens
        self._bytes = kv_bytes_per_token
        self._block_bytes = block_bytes  # on storage
        self._holds_written = settings.writes_hold_staging and not policy.skips_io

    def take(self, request: Request, now_s: float, pushed_s: float) -> Events:
        """A prompt comes, complete in the decode buffer at ``pushed_s``. One token to generate: that is all."""
        events = self._store_prompt(request, pushed_s)
        if request.generate == 1:
            request.joined_s = now_s
            return [*events, *self.leave_staging(request, now_s), *self._finish(request, now_s, 0)]
        if not request.decode.kv.take(request, request.prompt + request.generate):
            return events
        copied = self._copy_in(request, pushed_s)
        return (*events, copied) if events else (copied,)

    def _store_prompt(self, request: Request, pushed_s: float) -> Events:
        """The prompt's new blocks go to storage straight from the buffer, which may hold them until they are there."""
        stored = self._store(request, request.prompt, pushed_s)
        if not stored or not self._holds_written:
            return NOTHING
        added = stored // self._block_tokens
        request.staged -= added * self._block_tokens
        end_s, block_s = request.agent.chain.durable_s, self._block_bytes / request.decode.node.store_writes.bytes_per_s
        return [Written(end_s - later * block_s, self._life, request) for later in reversed(range(added))]

    def block_written(self, request: Request, now_s: float) -> Events:
        """One block's staging memory is free."""
        served = request.decode.node.staging.release(self._block_tokens)
        return self._life.decode_staging_free(served, now_s) if served else NOTHING

    def _copy_in(self, request: Request, now_s: float) -> Event:
        """It has device memory: from the buffer to the device, through the decode engine's NIC."""
        decode = request.decode
        request.has_device = True
        self._life.placer.take_device(request, request.prompt + request.generate)
        end_s = now_s
        if not self._skips_io:
            num_bytes = request.prompt * self._bytes
            end_s = decode.send(now_s, num_bytes, num_bytes)
            done_s = decode.node.dram.send(now_s, num_bytes)
            if done_s > end_s:
                end_s = done_s
        return Join(end_s + self._handover_s, self._life, request)

    def join(self, request: Request, now_s: float) -> Events:
        """The request is in the decode batch."""
        decode = request.decode
        request.joined_s = now_s
        request.is_joined = True
        served = decode.node.staging.release(request.staged)
        events = self._life.decode_staging_free(served, now_s) if served else NOTHING
        clock = decode.clock
        if clock.join(now_s, request):
            due = self.due(clock)
            return [*events, *due] if events else due
        return events

    def leave_staging(self, request: Request, now_s: float) -> Events:
        """Give the decode buffer back; others may have waited for it."""
        served = request.decode.node.staging.release(request.staged)
        return self._life.decode_staging_free(served, now_s) if served else NOTHING

    def end_decodes(self, clock: DecodeClock, now_s: float) -> Events:
        """Requests whose last token this is."""
        clock.due_s = math.inf
        ended = clock.finish(now_s)
        if not ended:
            return self.due(clock)
        events: list[Event] = []
        for request in ended:
            events += self._finish(request, now_s, request.prompt + request.generate)
        events += self.due(clock)
        return events

    def due(self, clock: DecodeClock) -> Events:
        """Somebody must look when the next request ends, unless somebody looks before."""
        end_s = clock.next_end_s()
        if end_s >= clock.due_s:
            return NOTHING
        clock.due_s = end_s
        return (DecodeDue(end_s, self._life, clock),)

    def _finish(self, request: Request, now_s: float, num_device_tokens: int) -> Events:
        """Everything is released; the agent goes on."""
        life, agent, context = self._life, request.agent, request.prompt + request.generate
        request.is_over = True
        agent.end_turn(request)
        if not request.is_mixed:
            if context - agent.chain.stored >= self._block_tokens:
                self._store(request, context, now_s)  # a last token that completes a block is computed for its KV
            life.storage.end(agent)
        events = self.release(request, now_s, num_device_tokens)
        life.observer.finished(request, now_s)
        more = life.go_on(agent, now_s)
        return [*events, *more] if events else more

    def release(self, request: Request, now_s: float, num_device_tokens: int) -> Events:
        """It leaves its decode engine, and device memory if it had come so far."""
        self._life.placer.release_decode(request, num_device_tokens)
        if not num_device_tokens:
            return NOTHING
        served = request.decode.kv.release(num_device_tokens)
        return [self._copy_in(other, now_s) for other in served] if served else NOTHING

    def _store(self, request: Request, num_tokens: int, now_s: float) -> int:
        """So much of the context has KV: its new whole blocks go through the decode node's storage NIC at once.

        A next turn's read waits for them. Returns their tokens.
        """
        agent, block = request.agent, self._block_tokens
        whole = num_tokens // block * block
        added = whole - agent.chain.stored
        if added <= 0:
            return 0
        self._life.storage.grow(agent, whole)
        if not self._skips_io:
            agent.chain.durable_s = request.decode.node.store(now_s, added // block * self._block_bytes)
        return added

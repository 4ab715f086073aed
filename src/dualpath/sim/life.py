"""The life of a simulated request: the steps of docs/architecture.md, each a method that an event calls.

Every method changes the cluster at a moment and returns the events that follow; the components know only their own part.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

from dualpath.scheduler.systems import SystemPolicy
from dualpath.sim.agenda import NOTHING, Event, Events
from dualpath.sim.agent import Agent
from dualpath.sim.cluster import Cluster
from dualpath.sim.cost import ModelCost
from dualpath.sim.decode import DecodeClock
from dualpath.sim.events import DecodeDue, Fetch, ForwardEnd, Join, Submit, Wake
from dualpath.sim.fetch_times import FetchTimes
from dualpath.sim.observer import Observer
from dualpath.sim.placing import Placer, Scope
from dualpath.sim.prefill import Chunk, PrefillEngine, PrefillGroup, move
from dualpath.sim.reading import Reader
from dualpath.sim.request import Request
from dualpath.sim.spec import SimSpec


class Life:
    """One simulated system with its cluster."""

    def __init__(
        self,
        spec: SimSpec,
        cost: ModelCost,
        policy: SystemPolicy,
        cluster: Cluster,
        placer: Placer,
        observer: Observer,
    ) -> None:
        self.fetch_s = math.inf  # when the next fetch happens; inf: none is due
        self.num_submitted = 0
        self._cluster, self._placer, self._observer = cluster, placer, observer
        rate = spec.cluster.storage_nic_bytes_per_s * spec.cluster.storage_nics_per_node
        settings = spec.scheduler
        self._block_tokens = settings.block_tokens
        self._expected_tokens = settings.expected_output_tokens
        self._admission_s = settings.admission_s
        self._handover_s = 0.0 if policy.skips_io else settings.handover_s
        self._think_s = spec.workload.think_s
        self._bytes = cost.kv_bytes_per_token
        self._counts_new = settings.prefill_load == "new"
        self._reserves = settings.memory == "reserved"
        self._streams, self._skips_io = policy.streams_layers, policy.skips_io
        self._reader = self.reader = Reader(policy, self._reserves, self._block_tokens, self._bytes, rate)
        self._times = FetchTimes(placer.scopes, len(cluster.groups), settings.fetch_interval_s)

    # -- 1: agents ----------------------------------------------------------------------------------------------------

    def submit(self, agent: Agent, now_s: float) -> Events:
        """The agent's next turn."""
        self.num_submitted += 1
        block = self._block_tokens
        request = agent.next_request(self.num_submitted, now_s, now_s + self._admission_s, block)
        generate, expected = request.generate, self._expected_tokens
        request.demand = -(-(request.prompt + (generate if generate < expected else expected)) // block) * block
        if self._counts_new:
            request.prefill_load = request.prompt - request.hit
        self._placer.add(request)
        return self._fetch_due(now_s)

    # -- 2: engines ---------------------------------------------------------------------------------------------------

    def fetch(self, scope: Scope, now_s: float) -> Events:
        """A leader takes what its engines can."""
        self._times.fetched(now_s)
        self.fetch_s = math.inf
        events: list[Event] = []
        for request in self._placer.fetch(scope, now_s):
            events += self._wait_for_forward(self._reader.place(request, now_s))
        events += self._fetch_due(now_s)
        return events

    def _fetch_due(self, now_s: float) -> Events:
        if self.fetch_s - now_s < self._times.step_s:
            return NOTHING  # nobody asks before that
        work_s = self._placer.next_work_s(now_s)
        if work_s is None or work_s >= self.fetch_s:
            return NOTHING
        found = self._times.next_after(work_s)
        if found is None or found[0] >= self.fetch_s:
            return NOTHING
        self.fetch_s, scope = found
        return (Fetch(self.fetch_s, self, scope),)

    # -- 3, 4: reads, which need no events of their own ---------------------------------------------------------------

    def _wait_for_forward(self, requests: Iterable[Request]) -> list[Event]:
        """It is known when their hits are there."""
        events: list[Event] = []
        for request in requests:
            engine, ready_s = request.prefill, request.ready_s
            assert engine is not None
            heapq.heappush(engine.ready, (ready_s, request.sequence, request))
            group = engine.group
            assert group is not None
            if ready_s < group.wake_s and not group.is_running:
                group.wake_s = ready_s
                events.append(Wake(ready_s, self, group))
        return events

    # -- 5: prefill ---------------------------------------------------------------------------------------------------

    def begin_forward(self, group: PrefillGroup, now_s: float) -> Events:
        """Compute what is ready, or wait for the next."""
        if not group.choose(now_s):
            group.wake_s = group.next_ready_s()
            return (Wake(group.wake_s, self, group),) if group.wake_s < math.inf else NOTHING
        group.wake_s = math.inf
        group.is_running = True
        group.num_forwards += 1
        loaded_s = now_s if self._skips_io else self._load(group, now_s)
        compute_s = group.compute_s()
        end_s = max(loaded_s, now_s + compute_s) if self._streams else loaded_s + compute_s
        for batch in group.batches:
            for request, _ in batch:
                if request.started_s < 0:
                    self._start(request, now_s)
        group.busy_s += compute_s
        self._observer.forward(group, now_s, end_s)
        return (ForwardEnd(end_s, self, group),)

    def _start(self, request: Request, now_s: float) -> None:
        """Its first forward: the decode buffer takes the whole prompt from now on."""
        request.started_s = now_s
        if self._reserves or self._skips_io:
            return
        assert request.decode is not None
        more = self._reader.prompt_tokens(request) - request.staged
        request.staged += more
        request.decode.node.staging.force(more)

    def _load(self, group: PrefillGroup, now_s: float) -> float:
        """When the batches' KV has moved: in both directions, where that overlaps with compute."""
        end_s = now_s
        for engine, batch in zip(group.engines, group.batches, strict=True):
            if not batch:
                continue
            if self._streams:
                moved_s = move(now_s, engine, batch, batch, self._observer.moved)
            else:  # what earlier chunks brought and computed is still there
                fresh = [chunk for chunk in batch if chunk[0].started_s < 0]
                moved_s = move(now_s, engine, fresh, (), self._observer.moved)
            end_s = max(end_s, moved_s)
        return end_s

    # -- 6: hand-over -------------------------------------------------------------------------------------------------

    def end_forward(self, group: PrefillGroup, now_s: float) -> Events:
        """First tokens; what was chunked is first in line."""
        group.is_running = False
        events: list[Event] = []
        for engine, batch in zip(group.engines, group.batches, strict=True):
            pushed_s = now_s
            if batch and not self._streams:
                pushed_s = move(now_s, engine, (), batch, self._observer.moved)
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
        events += self._fetch_due(now_s)
        return events

    def _hand_over(self, request: Request, now_s: float, pushed_s: float) -> list[Event]:
        """The prompt is complete in the decode buffer; it goes to the device through the decode engine's NIC."""
        request.first_token_s = request.handed_over_s = now_s
        events = self._leave_prefill(request, now_s)
        self._observer.first_token(request)
        decode = request.decode
        assert decode is not None
        if request.generate == 1:
            request.joined_s = now_s
            events += self._leave_staging(request, now_s)
            return [*events, *self._finish(request, now_s, 0)]
        if decode.kv.take(request, request.prompt + request.generate):
            events.append(self._copy_in(request, max(now_s, pushed_s)))
        return events

    def _copy_in(self, request: Request, now_s: float) -> Event:
        """It has decode device memory: from the buffer to the device."""
        decode = request.decode
        assert decode is not None
        self._placer.take_device(request, request.prompt + request.generate)
        end_s = now_s
        if not self._skips_io:
            num_bytes = request.prompt * self._bytes
            end_s = max(decode.nic.send(now_s, num_bytes, num_bytes), decode.node.dram.send(now_s, num_bytes))
        return Join(end_s + self._handover_s, self, request)

    def _leave_prefill(self, request: Request, now_s: float) -> list[Event]:
        """Give the prefill engine's memory back; others may have waited for it."""
        engine = request.prefill
        assert engine is not None
        self._placer.release_prefill(request)
        events: list[Event] = []
        if request.prefill_hit:
            for other in engine.node.staging.release(request.prefill_hit):
                events += self._wait_for_forward(self._reader.read(other, now_s))
        if not self._streams:
            for other in engine.kv.release(self._reader.prompt_tokens(request)):
                events += self._wait_for_forward(self._reader.stage_prefill(other, now_s))
        return events

    def _leave_staging(self, request: Request, now_s: float) -> list[Event]:
        """The same for the decode node's buffer."""
        assert request.decode is not None
        events: list[Event] = []
        for other in request.decode.node.staging.release(request.staged):
            events += self._wait_for_forward(self._reader.stage_decode(other, now_s))
        return events

    # -- 7 to 9: decode, persistence, release -------------------------------------------------------------------------

    def join(self, request: Request, now_s: float) -> Events:
        """The request is in the decode batch."""
        decode = request.decode
        assert decode is not None
        request.joined_s = now_s
        events = self._leave_staging(request, now_s)
        self._store(request, request.prompt, now_s)
        if decode.clock.join(now_s, request):
            events += self._decode_due(decode.clock)
        return events

    def end_decodes(self, clock: DecodeClock, now_s: float) -> Events:
        """Requests whose last token this is."""
        clock.due_s = math.inf
        events: list[Event] = []
        for request in clock.finish(now_s):
            events += self._finish(request, now_s, request.prompt + request.generate)
        events += self._decode_due(clock)
        return events

    def _decode_due(self, clock: DecodeClock) -> Events:
        end_s = clock.next_end_s()
        if end_s >= clock.due_s:
            return NOTHING
        clock.due_s = end_s
        return (DecodeDue(end_s, self, clock),)

    def _finish(self, request: Request, now_s: float, num_device_tokens: int) -> Events:
        """Everything is released; the agent goes on at once, later, or not at all."""
        request.is_over = True
        agent, decode = request.agent, request.decode
        assert decode is not None
        agent.end_turn(request)
        self._store(request, agent.context - 1, now_s)  # the last token's KV is never computed
        self._placer.release_decode(request, num_device_tokens)
        events: list[Event] = []
        if num_device_tokens:
            events += [self._copy_in(other, now_s) for other in decode.kv.release(num_device_tokens)]
        self._observer.finished(request, now_s)
        events += self._go_on(agent, now_s)
        return events

    def _go_on(self, agent: Agent, now_s: float) -> Events:
        if agent.is_done:
            self._observer.left(agent, now_s)
            return self._fetch_due(now_s)
        think_s = agent.rounds[agent.turn].think_s + self._think_s
        if think_s:
            return (*self._fetch_due(now_s), Submit(now_s + think_s, self, agent))
        return self.submit(agent, now_s)

    def _store(self, request: Request, num_tokens: int, now_s: float) -> None:
        """So much of the context has KV: its new whole blocks go through the decode node's storage NIC at once.

        A next turn's read waits for them.
        """
        agent = request.agent
        added = agent.store(num_tokens, self._block_tokens)
        if not added or self._skips_io:
            return
        assert request.decode is not None
        node, num_bytes = request.decode.node, added * self._bytes
        self._observer.stored_tokens += added
        node.dram.send(now_s, num_bytes)
        agent.durable_s = node.store_writes.send(now_s, num_bytes)

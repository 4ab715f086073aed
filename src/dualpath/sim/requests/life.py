"""The life of a simulated request, steps 1 to 4 of protocol.api: it comes, gets engines, its hits are read.

Every method is what an event does: it changes the cluster at a moment and returns the events that follow. Components
know only their own part; ``prefill_steps`` and ``decode_steps`` have the rest of the life.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from heapq import heappush
from typing import TYPE_CHECKING

from dualpath.scheduler.policy.systems import SystemPolicy
from dualpath.sim.cost import ModelCost
from dualpath.sim.engines.cluster import Cluster
from dualpath.sim.observer import Observer
from dualpath.sim.requests.agenda import NOTHING, Event, Events
from dualpath.sim.requests.agent import Agent
from dualpath.sim.requests.decode_steps import DecodeSteps
from dualpath.sim.requests.events import Fetch, Stored, Submit, Wake
from dualpath.sim.requests.fetch_times import FetchTimes
from dualpath.sim.requests.placing import Placer, Scope
from dualpath.sim.requests.prefill_steps import PrefillSteps
from dualpath.sim.requests.reading import Reader
from dualpath.sim.requests.request import Request
from dualpath.sim.requests.storage import Storage
from dualpath.sim.spec import SimSpec

if TYPE_CHECKING:
    from dualpath.sim.updates import Updates


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
        storage: Storage,
    ) -> None:
        self.fetch_s = math.inf  # when the next fetch happens; inf: none is due
        self.num_submitted = 0
        self.placer, self.observer, self.storage = placer, observer, storage
        self.updates: Updates | None = None  # that are told of every turn
        self.stands_still = False  # nothing is placed
        settings = spec.scheduler
        rate = spec.cluster.storage_nic_bytes_per_s * spec.cluster.storage_nics_per_node
        reserves = settings.memory == "reserved"
        block_bytes = settings.block_tokens * cost.kv_bytes_per_token + spec.cluster.block_header_bytes
        self.reader = Reader(policy, reserves, settings.block_tokens, block_bytes, rate)
        self.prefill = PrefillSteps(self, policy, reserves, cluster.collectives)
        self.decode = DecodeSteps(self, policy, settings, cost.kv_bytes_per_token, block_bytes)
        self.block_tokens = settings.block_tokens
        self._expected_tokens = settings.expected_output_tokens
        self._admission_s = settings.admission_s
        self._counts_new = settings.prefill_load == "new"
        self._think_s = spec.workload.think_s
        self._fetch_interval_s = settings.fetch_interval_s
        self._times = FetchTimes(placer.scopes, len(cluster.groups), settings.fetch_interval_s)

    # -- 1: agents ----------------------------------------------------------------------------------------------------

    def submit(self, agent: Agent, now_s: float) -> Events:
        """The agent's next turn."""
        self.num_submitted += 1
        request = agent.next_request(self.num_submitted, now_s, now_s + self._admission_s, self.block_tokens)
        self.storage.begin(request)
        return self.enqueue(request, now_s)

    def enqueue(self, request: Request, now_s: float) -> Events:
        """It waits for engines."""
        generate, expected, block = request.generate, self._expected_tokens, self.block_tokens
        most = request.prompt + (generate if generate < expected else expected)
        request.num_decode_tokens = -(-most // block) * block
        self.count(request)
        self.placer.add(request)
        return NOTHING if self.fetch_s - now_s < self._times.step_s else self.fetch_due(now_s)

    def count(self, request: Request) -> None:
        """What it adds to a prefill engine's load, by its hit."""
        request.num_prefill_tokens = request.prompt - request.hit if self._counts_new else request.prompt

    def go_on(self, agent: Agent, now_s: float) -> Events:
        """The agent has its answer: its next turn now, later, or never."""
        events = self._next_turn(agent, now_s)
        return events if self.updates is None else [*events, *self.updates.turn(now_s)]

    def _next_turn(self, agent: Agent, now_s: float) -> Events:
        if agent.turn >= len(agent.rounds):
            self.observer.left(agent, now_s)
            return self.fetch_due(now_s)
        think_s = agent.rounds[agent.turn].think_s + self._think_s
        if think_s:
            return (*self.fetch_due(now_s), Submit(now_s + think_s, self, agent))
        return self.submit(agent, now_s)

    # -- 2: engines ---------------------------------------------------------------------------------------------------

    def fetch(self, scope: Scope, now_s: float) -> Events:
        """A leader takes what its engines can."""
        self._times.fetched(now_s)
        self.fetch_s = math.inf
        events: list[Event] = []
        place, wait = self.reader.place, self._wait_for_forward
        for request in self.placer.fetch(scope, now_s):
            if request.hit and request.durable_s > now_s:
                events.append(Stored(request.durable_s, self, request))
            elif place(request, now_s):
                wait(request, events)
        events += self.fetch_due(now_s)
        return events

    def hit_stored(self, request: Request, now_s: float) -> Events:
        """The last block of its hit is on storage: ask for memory, and read."""
        return self._waiting(self.reader.place, (request,), now_s)

    def fetch_due(self, now_s: float) -> Events:
        """Something may be placed now that could not before."""
        if self.fetch_s - now_s < self._times.step_s or self.stands_still:
            return NOTHING  # nobody asks before that
        work_s = self.placer.next_work_s(now_s)
        if work_s is None or work_s >= self.fetch_s:
            return NOTHING
        found = self._times.next_after(work_s)
        if found is None or found[0] >= self.fetch_s:
            return NOTHING
        self.fetch_s, scope = found
        return (Fetch(self.fetch_s, self, scope),)

    def stand_still(self) -> None:
        """Place nothing, until ``stands_still`` is False again and something asks for work."""
        self.stands_still = True
        self.fetch_s = math.inf

    def use_leaders(self, scopes: Sequence[Scope], now_s: float) -> None:
        """From now on only these leaders ask: groups come and go where nodes change their role."""
        self._times = FetchTimes(scopes, len(scopes), self._fetch_interval_s)
        self._times.fetched(now_s)

    # -- 3, 4: reads, which need no events of their own ---------------------------------------------------------------

    def _wait_for_forward(self, request: Request, events: list[Event]) -> None:
        """It is known when its hits are there; an idle group is woken then."""
        engine, ready_s = request.prefill, request.ready_s
        heappush(engine.ready, (ready_s, request.sequence, request))
        group = engine.group
        if ready_s < group.wake_s and not group.is_running:
            group.wake_s = ready_s
            events.append(Wake(ready_s, self, group))

    def _waiting(self, step: Callable[[Request, float], bool], requests: Iterable[Request], now_s: float) -> Events:
        """The next step of their reads."""
        events: list[Event] = []
        for request in requests:
            if step(request, now_s):
                self._wait_for_forward(request, events)
        return events

    def prefill_staging_free(self, requests: Sequence[Request], now_s: float) -> Events:
        """They have prefill staging memory now, others having left."""
        return self._waiting(self.reader.read, requests, now_s)

    def prefill_memory_free(self, requests: Sequence[Request], now_s: float) -> Events:
        """They have prefill device memory now."""
        return self._waiting(self.reader.stage_prefill, requests, now_s)

    def decode_staging_free(self, requests: Sequence[Request], now_s: float) -> Events:
        """They have decode staging memory now."""
        return self._waiting(self.reader.stage_decode, requests, now_s)

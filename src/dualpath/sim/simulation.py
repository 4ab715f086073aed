"""One system, one workload, simulated from the first agent to the last token or to the end of the measurement."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dualpath.core.errors import DualPathError
from dualpath.report.updates import UPDATE
from dualpath.scheduler.policy.systems import system_policy
from dualpath.sim.chrome_trace import ChromeTrace
from dualpath.sim.cost import ModelCost
from dualpath.sim.engines.cluster import Cluster, build
from dualpath.sim.failures import Failure, Lose
from dualpath.sim.limits import prefill_limits
from dualpath.sim.observer import Observer
from dualpath.sim.requests.agenda import Agenda
from dualpath.sim.requests.agent import Agent
from dualpath.sim.requests.events import Submit
from dualpath.sim.requests.life import Life
from dualpath.sim.requests.placing import Placer, Scope
from dualpath.sim.requests.storage import Storage
from dualpath.sim.spec import SimSpec, require_possible
from dualpath.sim.updates import Updates
from dualpath.sim.workload import arrivals, load_trajectories, longest_tokens, make_agents, mean_request
from dualpath.trace.trajectory import Trajectory


@dataclass(slots=True)
class Simulation:
    """A system before, while and after it runs; ``results`` reads it."""

    spec: SimSpec
    cost: ModelCost
    cluster: Cluster
    placer: Placer
    life: Life
    observer: Observer
    agents: list[Agent]
    agenda: Agenda

    def run(self) -> None:
        """Offline until the last token, online until the window ends. Raises DualPathError if agents wait for ever."""
        with _uncollected():
            self._run()
        self._close()

    def _run(self) -> None:
        work = self.spec.workload
        if work.aps is not None:
            self.agenda.run(work.warm_up_s)
            self.observer.context.restart(work.warm_up_s)
            self.agenda.run(work.warm_up_s + work.duration_s)
        else:
            self.agenda.run()

    def _close(self) -> None:
        self.observer.flush()
        if self.spec.workload.aps is not None:
            end_s = self.observer.until_s
            for agent in self.agents:
                if agent.request is not None:
                    self.observer.unfinished(agent.request, end_s)
            self.observer.end_s = end_s
            return
        left = [agent.index for agent in self.agents if not agent.is_done]
        if left:
            raise DualPathError(f"{len(left)} agents wait for ever, the first is agent {left[0]}: no engines are left")

    def check_integrity(self) -> None:
        """After an offline run: raise AssertionError unless everything taken was given back."""
        self.placer.check_integrity()
        self.life.storage.check_integrity()
        for node in self.cluster.nodes:
            assert node.staging.used_tokens == 0, f"{node.name}: {node.staging.used_tokens} staged tokens left"
            assert node.snic.queue_tokens(math.inf) == 0, f"{node.name}: reads are still queued"
        for engine in self.cluster.prefill:
            assert engine.kv.used_tokens == 0, f"{engine.engine_id}: {engine.kv.used_tokens} tokens left"
            assert not engine.ready, f"{engine.engine_id}: requests are left"
            assert not engine.unfinished, f"{engine.engine_id}: requests are left"
        for decoder in self.cluster.decode:
            assert decoder.kv.used_tokens == 0, f"{decoder.engine_id}: {decoder.kv.used_tokens} tokens left"
            assert decoder.batch_requests == decoder.batch_context == 0, f"{decoder.engine_id}: its batch is not empty"


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the cycle collector, which would look at all agents again and again: requests and events die by their
    reference counts, since an agent and its request let go of each other at the end of a turn."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def prepare(
    spec: SimSpec,
    cost: ModelCost,
    system: str,
    trajectories: Sequence[Trajectory] | None = None,
    trace: ChromeTrace | None = None,
    kind: str | None = UPDATE,
) -> Simulation:
    """Everything idle, agents about to come. ``trajectories``: those of ``load_trajectories``, to share them between
    systems. ``kind``: how weights change that the spec lets change (``report.updates``). Raises ConfigError for a
    cluster that cannot hold the longest request."""
    found = load_trajectories(spec.workload) if trajectories is None else trajectories
    work = spec.workload
    window = (0.0, math.inf) if work.aps is None else (work.warm_up_s, work.warm_up_s + work.duration_s)
    return prepare_agents(spec, cost, system, found, make_agents(found), arrivals(work), window, trace, kind)


def prepare_agents(
    spec: SimSpec,
    cost: ModelCost,
    system: str,
    found: Sequence[Trajectory],
    agents: list[Agent],
    moments: Sequence[float],
    window: tuple[float, float],
    trace: ChromeTrace | None = None,
    kind: str | None = UPDATE,
) -> Simulation:
    """The same for agents that are there already, one for each trajectory, and come at these moments in seconds.

    ``window``: requests that are submitted within it are counted.
    """
    policy = system_policy(system, "shorter")
    longest = longest_tokens(found)
    require_possible(spec, cost, longest)
    cluster = build(spec, cost, policy)
    mean_prompt, mean_hit = mean_request(found, spec.scheduler.block_tokens)
    limits = prefill_limits(spec, cost, mean_prompt, mean_hit, longest)
    scopes, reserves = [Scope(engines, limits) for engines in cluster.scopes], spec.scheduler.memory == "reserved"
    placer = Placer(policy, scopes, cluster.decode_groups, limits, reserves)
    observer = Observer(*window, trace)
    storage = Storage(agents, capacity_tokens(spec, cost))
    life = Life(spec, cost, policy, cluster, placer, observer, storage)
    if kind is not None and spec.updates.every is not None:
        life.updates = Updates(life, cluster.clocks, agents, spec.updates, spec.updates.every, kind)
    agenda = Agenda()
    for agent, moment_s in zip(agents, moments, strict=True):
        agent.started_s = moment_s
        agenda.add((Submit(moment_s, life, agent),))
    for failure in map(Failure.parse, spec.failures.events):
        agenda.add((Lose(failure.time_s, life, agents, failure.engines(cluster), failure.back_after_s),))
    return Simulation(spec, cost, cluster, placer, life, observer, agents, agenda)


def capacity_tokens(spec: SimSpec, cost: ModelCost) -> int | None:
    """Of the store, in whole blocks; None: room for all."""
    if spec.cluster.store_bytes is None:
        return None
    block = spec.scheduler.block_tokens
    return spec.cluster.store_bytes // (block * cost.kv_bytes_per_token + spec.cluster.block_header_bytes) * block


def simulate(
    spec: SimSpec,
    cost: ModelCost,
    system: str,
    trajectories: Sequence[Trajectory] | None = None,
    trace: ChromeTrace | None = None,
    kind: str | None = UPDATE,
) -> Simulation:
    """Prepare and run."""
    simulation = prepare(spec, cost, system, trajectories, trace, kind)
    simulation.run()
    return simulation

"""A world from a scenario: processes, network, storage and agents on one virtual loop, and what came of it."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import itertools
import logging
import sys
import warnings
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch

from dualpath.core.errors import DualPathError
from dualpath.core.ids import BlockKey
from dualpath.core.request import TokenEvent
from dualpath.scheduler.job import Job
from dualpath.store import memory
from dualpath.store.memory import MemoryStore
from dualpath.testing import checks
from dualpath.testing.client import Book, Client, Violation
from dualpath.testing.faults import Faults, objects_of
from dualpath.testing.front import Front
from dualpath.testing.gateways import SimGateway
from dualpath.testing.hash_model import GEOMETRY, HashModel, namespace_of
from dualpath.testing.loop import VirtualLoop
from dualpath.testing.nodes import SimNode
from dualpath.testing.parts import Surroundings, engine_names, node_names, serve_config
from dualpath.testing.scenario import STORM_S, Agent, Scenario, Turn
from dualpath.testing.server import SimServer
from dualpath.testing.trainer import Trainer
from dualpath.testing.weather import Weather
from dualpath.traffic.fake_transport import FakeFabric

_END_S = 1500.0  # by then all requests have ended, and all that was killed is there again
_REST_S = 20.0  # after the last fault, everything that was held has been given back
_MAX_STEPS = 500_000  # six times what a world takes
_MAX_COLLECTIONS = 10
_names = itertools.count()


@dataclass(slots=True)
class Outcome:
    """What a seed came to. ``violation``: what must never happen, and has."""

    seed: int
    violation: str | None = None
    trace: list[str] = field(default_factory=list)
    num_answers: int = 0
    num_failures: int = 0
    num_aborted: int = 0
    num_retries: int = 0
    num_hit_tokens: int = 0
    num_late: int = 0
    num_stored: int = 0
    num_updates: int = 0
    num_mixed: int = 0
    num_steps: int = 0
    virtual_s: float = 0.0
    paths: dict[str, int] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Equal for equal runs."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()[:16]


def run(scenario: Scenario) -> Outcome:
    """Run a scenario to its end. Logs of the code under test are the caller's to silence."""
    outcome = Outcome(scenario.seed)
    with _quietly():
        _live(scenario, outcome)
    return outcome


def _live(scenario: Scenario, outcome: Outcome) -> None:
    """Nothing that is left refers to the world then."""
    loop = VirtualLoop(scenario.seed)
    loop.max_steps = _MAX_STEPS
    url = f"memory://world-{next(_names)}"
    torch.set_num_threads(1)
    broken: list[BaseException] = []

    def note(_: object, context: dict[str, Any]) -> None:
        outcome.trace.append(f"loop: {context.get('message')}")
        error = context.get("exception")
        if "handle" in context or not isinstance(error, DualPathError | None):
            broken.append(context["exception"])

    loop.set_exception_handler(note)
    world = _World(scenario, loop, url, outcome)
    try:
        with world.watching():
            loop.run_until_complete(world.run())
    except Exception as error:  # a block that is not what its name says, for example
        outcome.violation = _explain(error)
    if broken and outcome.violation is None:
        outcome.violation = f"nobody expected {_explain(broken[0])}"
    outcome.num_steps, outcome.virtual_s = loop.num_steps, round(loop.now_s, 3)
    loop.wind_up()
    loop.close()
    memory.forget(url)


@contextmanager
def _quietly() -> Iterator[None]:
    """Collect nothing meanwhile, or it would be at another moment in another run; and then what dead processes left."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
            gc.freeze()  # what is there already is looked at no more: a collection takes a millisecond then
            gc.disable()
            yield
            for _ in range(_MAX_COLLECTIONS):  # what ends leaves things, too: its ``finally`` has begun others
                if not gc.collect():
                    break
    finally:
        gc.enable()
        sys.unraisablehook = hook


def _explain(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


class _World:
    def __init__(self, scenario: Scenario, loop: VirtualLoop, url: str, outcome: Outcome) -> None:
        self._scenario, self._loop, self._outcome = scenario, loop, outcome
        nodes = node_names(scenario)
        engines: dict[str, str] = {engine: node for node in nodes for engine in engine_names(scenario, node)}
        weather = Weather(scenario.seed, list(nodes), engines)
        fabric = FakeFabric(
            _Clock(loop), delay_s=scenario.network_delay_s, judge=weather.judge, at=self._at_in_the_world
        )
        self._around = Surroundings(scenario, fabric, weather, url)
        self._stores = {name: MemoryStore(url, namespace_of(name).digest, GEOMETRY) for name in scenario.weights}
        self._book = Book()
        self._trespasses: list[float] = []  # when forwards have begun in a pause

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note what the scheduler sees of answers, also where no client reads it any more; and every forward."""
        emit = Job.emit

        def noted(job: Job, event: TokenEvent, *rest: Any) -> None:
            num_before = len(job.generated)
            emit(job, event, *rest)
            if len(job.generated) > num_before:
                self._book.asked[job.request.request_id].generated.append(event.token_id)

        def begin_forward(model: HashModel) -> None:
            if self._trainer.is_quiet:
                self._trespasses.append(self._loop.now_s)

        with patch.object(Job, "emit", noted), patch.object(HashModel, "begin_forward", begin_forward):
            yield

    async def run(self) -> None:
        scenario, config = self._scenario, serve_config(self._scenario, self._around.url)
        nodes = {n.name: n for n in config.nodes if n.role != "gateway"}
        self._nodes = {name: SimNode(self._around, config, node, self._loop, self._log) for name, node in nodes.items()}
        self._front = Front(self._around, config, self._nodes, self._loop, self._log)
        self._gateways = [
            SimGateway(i, self._around, self._front, self._nodes, self._loop, self._log)
            for i in range(scenario.num_gateways)
        ]
        self._servers: list[SimServer] = [*self._gateways] or [self._front]
        self._trainer = Trainer(self._servers, self._loop, self._log, outlives=bool(self._gateways))
        self._faults = Faults(
            scenario,
            self._loop,
            self._around,
            self._front,
            self._nodes,
            self._gateways,
            self._stores.values(),
            self._log,
        )
        await self._until_up()
        for fault in scenario.faults:
            self._loop.call_later(fault.at_s, self._faults.begin, fault)
        for update in scenario.updates:
            self._loop.call_later(update.at_s, self._trainer.bring, update)
        agents = [self._client(agent).run(self._loop.time) for agent in scenario.agents]
        await _all(agents)
        await asyncio.sleep(max(0.0, STORM_S - self._loop.now_s))
        await self._calm()
        await self._check_that_it_serves()
        await asyncio.sleep(_REST_S)
        self._check()
        for server in (*self._gateways, self._front):
            await server.close()
        self._finish()

    def _client(self, agent: Agent) -> Client:
        server = self._servers[agent.number % len(self._servers)]
        return Client(self._scenario.seed, agent, server, self._book, self._log, self._scenario.weights)

    async def _until_up(self) -> None:
        async with asyncio.timeout(100.0):
            while not self._all_up():
                if self._front.starting.done() and self._front.starting.exception() is not None:
                    raise Violation(f"the cluster does not start: {self._front.starting.exception()!r}")
                await asyncio.sleep(0.1)

    def _all_up(self) -> bool:
        return all(server.is_up.is_set() for server in (self._front, *self._gateways))

    async def _calm(self) -> None:
        """No fault any more, and every process is there."""
        while self._around.weather.active or not self._all_up() or self._trainer.is_busy:
            await asyncio.sleep(0.5)
            if self._loop.now_s > _END_S:
                raise Violation(f"the cluster is not up after {_END_S:g} s: {self._front.state}")
        self._log("all faults are over")
        await asyncio.sleep(10.0 + 1.2 * self._scenario.restarts_after_s)

    async def _check_that_it_serves(self) -> None:
        """After all faults, a request is answered again."""
        turns = (Turn(9, 3), Turn(4, 2))
        number = len(self._scenario.agents) + 100
        num_failures = len(self._book.failures)
        await self._client(Agent(number, "last", 0.0, 7, turns)).run(self._loop.time)
        if len(self._book.failures) > num_failures:
            raise Violation(f"after all faults a request failed: {self._book.failures[-1].error}")

    def _check(self) -> None:
        if self._trespasses:
            raise Violation(f"a forward began in a pause, at {self._trespasses[0]:.3f} s")
        cluster = self._front.cluster
        assert cluster is not None
        engine_loads = cluster.desk.engine_loads
        engine_loads.check_integrity()
        if not engine_loads.is_idle:
            raise Violation("the engines' loads are not zero")
        if any(seat.stays for seat in cluster.desk.seats):
            raise Violation("the desk knows of attempts")
        checks.check_engines(self._around.engines.values())
        checks.check_index(cluster.index, list(self._stores.values()), self._faults.excused)
        damaged = self._faults.excused | self._torn()
        for name, store in self._stores.items():
            self._outcome.num_stored += checks.check_stored(store, self._book, damaged, name)
        checks.check_weights(self._around.engines.values())
        checks.check_failures(self._scenario, self._book.failures, self._faults.down)

    def _torn(self) -> set[BlockKey]:
        """Objects that storage itself did not keep as they were written: their checksum says so."""
        if not any(fault.kind in ("tear writes", "flip writes") for fault in self._scenario.faults):
            return set()
        return {key for store, key in objects_of(self._stores.values()) if not store.is_sound(key)}

    def _finish(self) -> None:
        book, outcome = self._book, self._outcome
        outcome.num_answers, outcome.num_failures = book.num_answers, len(book.failures)
        outcome.num_aborted, outcome.num_retries = book.num_aborted, book.num_retries
        outcome.num_hit_tokens, outcome.paths = book.num_hit_tokens, book.paths
        outcome.num_late = self._around.fabric.num_late
        outcome.num_updates, outcome.num_mixed = self._trainer.num_updates, book.num_mixed

    def _at_in_the_world(self, due_s: float, call: object) -> None:
        assert callable(call)
        self._loop.call_at(due_s, call, context=Context())

    def _log(self, text: str) -> None:
        self._outcome.trace.append(f"{self._loop.now_s:10.4f} {text}")


class _Clock:
    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now_s(self) -> float:
        return self._loop.now_s

    def unix_s(self) -> float:
        return self._loop.now_s

    async def sleep_s(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def _all(coroutines: list[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; the first violation ends it."""
    async with asyncio.TaskGroup() as group:
        for coroutine in coroutines:
            group.create_task(coroutine)


logging.getLogger("dualpath").addHandler(logging.NullHandler())

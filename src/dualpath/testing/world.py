"""A world from a scenario: processes, network, storage, agents and faults on one virtual loop, and what came of it."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import itertools
import logging
import random
import sys
import warnings
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

import torch

from dualpath.core.ids import BlockKey
from dualpath.store import memory
from dualpath.store.memory import MemoryStore
from dualpath.testing import checks
from dualpath.testing.client import Book, Client, Violation
from dualpath.testing.front import Front
from dualpath.testing.hash_model import GEOMETRY, NAMESPACE
from dualpath.testing.loop import VirtualLoop
from dualpath.testing.nodes import SimNode
from dualpath.testing.parts import Surroundings, engine_names, node_names, serve_config
from dualpath.testing.scenario import NODE_FAULTS, STORM_S, Agent, Fault, Scenario, Turn
from dualpath.testing.weather import Weather
from dualpath.traffic.fake_transport import FakeFabric

_END_S = 1500.0  # by then all requests have ended, and all that was killed is there again
_REST_S = 20.0  # after the last fault, everything that was held has been given back
_MAX_STEPS = 3_000_000
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
    num_corrupt: int = 0
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
    loop = VirtualLoop(scenario.seed)
    loop.max_steps = _MAX_STEPS
    url = f"memory://world-{next(_names)}"
    torch.set_num_threads(1)
    with _quietly():
        loop.set_exception_handler(lambda _, context: outcome.trace.append(f"loop: {context.get('message')}"))
        try:
            loop.run_until_complete(_World(scenario, loop, url, outcome).run())
        except (AssertionError, ExceptionGroup) as error:
            outcome.violation = _explain(error)
        loop.wind_up()
        loop.close()
        memory.forget(url)
    outcome.num_steps, outcome.virtual_s = loop.num_steps, round(loop.now_s, 3)
    return outcome


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
            gc.collect()
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
        self._store = MemoryStore(url, NAMESPACE.digest, GEOMETRY)
        self._dice = random.Random(f"world {scenario.seed}")
        self._book = Book()
        self._excused: set[BlockKey] = set()  # objects that were lost or damaged from outside
        self._down: checks.Downtimes = {}

    async def run(self) -> None:
        scenario, config = self._scenario, serve_config(self._scenario, self._around.url)
        nodes = {n.name: n for n in config.nodes if n.role != "gateway"}
        self._nodes = {name: SimNode(self._around, config, node, self._loop, self._log) for name, node in nodes.items()}
        self._front = Front(self._around, config, self._nodes, self._loop, self._log)
        await self._until_up()
        for fault in scenario.faults:
            self._loop.call_later(fault.at_s, self._begin, fault)
        agents = [self._client(agent).run(self._loop.time) for agent in scenario.agents]
        await _all(agents)
        await asyncio.sleep(max(0.0, STORM_S - self._loop.now_s))
        await self._calm()
        await self._check_that_it_serves()
        await asyncio.sleep(_REST_S)
        self._check()
        await self._front.close()
        self._finish()

    def _client(self, agent: Agent) -> Client:
        return Client(self._scenario.seed, agent, self._front, self._book, self._log)

    async def _until_up(self) -> None:
        async with asyncio.timeout(100.0):
            while not self._front.is_up.is_set():
                if self._front.starting.done() and self._front.starting.exception() is not None:
                    raise Violation(f"the cluster does not start: {self._front.starting.exception()!r}")
                await asyncio.sleep(0.1)

    async def _calm(self) -> None:
        """No fault any more, and every process is there."""
        while self._around.weather.active or not self._front.is_up.is_set():
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
        cluster = self._front.cluster
        assert cluster is not None
        accounts = cluster.service.accounts
        accounts.check_integrity()
        if not accounts.is_idle:
            raise Violation("the accounts are not zero")
        checks.check_engines(self._around.engines.values())
        checks.check_index(cluster.index, self._store, self._excused)
        self._outcome.num_stored = checks.check_stored(self._store, self._book, self._excused | self._torn())
        checks.check_failures(self._scenario, self._book.failures, self._down)

    def _torn(self) -> set[BlockKey]:
        """Objects that storage itself did not keep as they were written: their checksum says so."""
        if not any(fault.kind in ("tear writes", "flip writes") for fault in self._scenario.faults):
            return set()
        return {block.key for block in MemoryStore.list_blocks(self._store) if not self._store.is_sound(block.key)}

    def _finish(self) -> None:
        book, outcome = self._book, self._outcome
        outcome.num_answers, outcome.num_failures = book.num_answers, len(book.failures)
        outcome.num_aborted, outcome.num_retries = book.num_aborted, book.num_retries
        outcome.num_hit_tokens, outcome.paths = book.num_hit_tokens, book.paths
        outcome.num_late = self._around.fabric.num_late

    # -- faults -------------------------------------------------------------------------------------------------------

    def _begin(self, fault: Fault) -> None:
        self._log(f"fault {fault.number}: {fault.kind}, target {fault.target}, {fault.for_s} s, {fault.strength}")
        if fault.kind in NODE_FAULTS and not self._nodes:
            return
        match fault.kind:
            case "kill":
                self._kill(self._around.weather.node(fault))
            case "stop":
                self._nodes[self._around.weather.node(fault)].stop(fault.for_s)
            case "flip staging":
                self._flip_staging(fault)
            case "lose objects" | "damage objects":
                self._spoil_objects(fault)
            case "jump clock":
                self._loop.now_s += fault.for_s
            case "jump wall clock":
                self._front.jump_wall_clock(self._dice.uniform(-1e5, 1e5))
            case "restart scheduler":
                self._front.kill()
            case "stop scheduler":
                self._front.stop(fault.for_s)
            case _:
                self._around.weather.begin(fault)
                if fault.kind == "hang transfers":
                    self._hang(fault, True)
                self._loop.call_later(fault.for_s, self._end, fault)

    def _end(self, fault: Fault) -> None:
        self._around.weather.end(fault)
        if fault.kind == "hang transfers" and not self._around.weather.strength(
            fault.kind, self._around.weather.node(fault)
        ):
            self._hang(fault, False)

    def _kill(self, name: str) -> None:
        now_s = self._loop.now_s
        self._down.setdefault(name, []).append((now_s, now_s + self._scenario.restarts_after_s + 5.0))
        self._nodes[name].kill()

    def _hang(self, fault: Fault, is_hung: bool) -> None:
        fabric = self._around.fabric
        for engine_id in engine_names(self._scenario, self._around.weather.node(fault)):
            (fabric.hang if is_hung else fabric.unhang)(engine_id)

    def _flip_staging(self, fault: Fault) -> None:
        """One bit of a staging slot that is in use."""
        engines = sorted(self._around.engines)
        if not engines:
            return
        traffic = self._around.engines[engines[fault.target % len(engines)]].traffic
        slots = traffic.slots.granted
        if slots:
            view = traffic.slot_view(slots[self._dice.randrange(len(slots))])
            view[self._dice.randrange(len(view))] ^= 1 << self._dice.randrange(8)

    def _spoil_objects(self, fault: Fault) -> None:
        for block in list(MemoryStore.list_blocks(self._store)):
            if self._dice.random() >= fault.strength:
                continue
            self._excused.add(block.key)
            if fault.kind == "lose objects":
                MemoryStore.delete(self._store, block.key)
            else:
                data = bytearray(self._store.raw(block.key))
                data[self._dice.randrange(len(data))] ^= 1 << self._dice.randrange(8)
                self._store.put_raw(block.key, bytes(data))

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

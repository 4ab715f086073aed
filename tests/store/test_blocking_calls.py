"""Calls that hang: each keeps one thread and nobody else, and the end does not wait for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from dualpath.core.errors import StoreError, StoreFullError
from dualpath.core.runtime import Command, SystemRuntime
from dualpath.store.blocking_calls import NUM_THREADS, STUCK_S, TRIED_AFTER_S, BlockingCalls


class StandingRuntime(SystemRuntime):
    """Only tests move the clock."""

    time_s = 1000.0

    def now_s(self) -> float:
        return self.time_s


class Bench:
    """Calls that end when their gate is opened, and what the owner was told of."""

    def __init__(self, max_threads: int) -> None:
        self.runtime = StandingRuntime()
        self.calls = BlockingCalls(self.runtime, "test", self.try_write, max_threads=max_threads)
        self.num_tries = 0
        self.works = threading.Event()
        self.refusal: StoreError | None = None
        self.gates: list[threading.Event] = []
        self.outcomes: list[tuple[str, str]] = []

    def try_write(self, num_bytes: int) -> None:
        self.num_tries += 1
        self.works.wait()
        if self.refusal is not None:
            raise self.refusal

    def hang(self, count: int) -> list[threading.Event]:
        """Run calls that hang, and wait until as many as can are under way. They never return, unless let go."""
        gates = [threading.Event() for _ in range(count)]
        self.gates += gates
        begun = [threading.Event() for _ in range(count)]
        end_s = time.monotonic() + 10.0

        def wait(number: int) -> Command:
            begun[number].set()
            gates[number].wait()
            return partial(self.outcome, f"hung {number}")

        self.calls.run([partial(wait, number) for number in range(count)])
        while not all(event.is_set() for event in begun):
            self.runtime.time_s += 0.001  # for each thread that is to come
            self.calls.take()
            assert time.monotonic() < end_s
            time.sleep(0.01)
        return gates

    def outcome(self, name: str) -> None:
        self.outcomes.append((name, threading.current_thread().name))

    def say(self, name: str) -> Callable[[], Command]:
        return lambda: partial(self.outcome, name)

    def until(self, condition: Callable[[], bool]) -> None:
        end_s = time.monotonic() + 10.0
        while not condition():
            self.calls.take()
            assert time.monotonic() < end_s
            time.sleep(0.0005)

    def said(self, name: str) -> bool:
        return name in [outcome for outcome, _ in self.outcomes]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(max_threads=NUM_THREADS + 2)
    yield bench
    for gate in (*bench.gates, bench.works):
        gate.set()


def test_outcomes_are_the_owners_on_its_thread(bench: Bench) -> None:
    bench.calls.run([bench.say(str(number)) for number in range(20)])
    bench.until(lambda: len(bench.outcomes) == 20)
    assert {thread for _, thread in bench.outcomes} == {threading.current_thread().name}
    assert bench.calls.num_lively == 0


def test_a_call_that_hangs_holds_up_no_other(bench: Bench) -> None:
    """Nor need they wait until it counts as stuck."""
    bench.hang(1)
    bench.runtime.time_s += STUCK_S / 2
    for number in range(20):
        bench.runtime.time_s += 0.002
        bench.calls.run([bench.say(str(number))])
        bench.until(lambda number=number: bench.said(str(number)))  # type: ignore[misc]


def test_where_all_threads_hang_others_come_up_to_a_bound(bench: Bench) -> None:
    gates = bench.hang(NUM_THREADS)
    bench.calls.run([bench.say("behind")])
    assert not bench.calls.take()
    bench.runtime.time_s += STUCK_S  # now they count as stuck
    bench.until(lambda: bench.said("behind"))
    assert bench.calls.stalled_s() >= STUCK_S

    bench.hang(2)
    bench.runtime.time_s += STUCK_S
    bench.calls.run([bench.say("last")])
    bench.runtime.time_s += STUCK_S
    bench.calls.take()
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("test-")]
    assert len(set(names)) <= NUM_THREADS + 2
    assert not bench.said("last")
    gates[0].set()
    bench.until(lambda: bench.said("last"))


def test_nothing_is_stalled_where_nothing_waits(bench: Bench) -> None:
    assert bench.calls.stalled_s() == 0.0
    (gate,) = bench.hang(1)
    bench.runtime.time_s += 7.0
    assert bench.calls.stalled_s() >= 7.0
    gate.set()
    bench.until(lambda: bench.said("hung 0"))
    assert bench.calls.stalled_s() == 0.0


@pytest.mark.parametrize("refusal", [None, StoreFullError("no room")])
def test_a_call_that_never_returns_is_forgotten_once_storage_works(bench: Bench, refusal: StoreError | None) -> None:
    bench.refusal = refusal
    bench.works.set()
    bench.hang(1)
    assert bench.calls.stalled_s() < TRIED_AFTER_S
    assert bench.num_tries == 0
    bench.runtime.time_s += 10.0
    assert bench.calls.stalled_s() >= 10.0
    bench.until(lambda: bench.calls.stalled_s() == 0.0)
    bench.runtime.time_s += 1000.0
    assert bench.calls.stalled_s() == 0.0
    assert bench.num_tries == 1
    bench.hang(1)
    bench.runtime.time_s += 2.0
    assert bench.calls.stalled_s() >= 2.0, "this one began since"
    assert bench.calls.stalled_s([bench.runtime.time_s - 2.5]) >= 2.5
    assert bench.calls.stalled_s([bench.runtime.time_s - 1100.0]) < 2.5


def test_tries_that_hang_are_few(bench: Bench) -> None:
    bench.hang(1)
    for _ in range(20):
        bench.runtime.time_s += TRIED_AFTER_S / 2
        bench.calls.stalled_s()
    bench.until(lambda: bench.num_tries == 4)  # after 3, 6, 12 and 24 s
    assert bench.calls.stalled_s() >= 10 * TRIED_AFTER_S
    bench.works.set()
    bench.until(lambda: bench.calls.stalled_s() == 0.0)


def test_a_try_that_fails_forgets_nothing(bench: Bench) -> None:
    bench.refusal = StoreError("the file system is gone")
    bench.works.set()
    bench.hang(1)
    bench.runtime.time_s += 5.0
    bench.calls.stalled_s()
    bench.until(lambda: bench.calls.num_lively == 0)
    assert bench.num_tries == 1
    assert bench.calls.stalled_s() >= 5.0


def test_the_end_leaves_hung_calls_behind_and_begins_no_more(bench: Bench) -> None:
    gates = bench.hang(NUM_THREADS)
    bench.calls.run([bench.say("never")])
    assert bench.calls.close() == NUM_THREADS
    for gate in gates:
        gate.set()
    bench.until(lambda: bench.calls.num_lively == 0)
    assert not bench.said("never")


def test_a_call_that_raises_against_its_contract_ends_no_thread(bench: Bench) -> None:
    def fail() -> Command:
        raise ValueError("a bug")

    bench.calls.run([fail, bench.say("next")])
    bench.until(lambda: bench.said("next"))
    assert bench.calls.num_lively == 0

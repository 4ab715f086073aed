"""Runs simulations in worker processes. Each is deterministic, so their order does not matter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import as_completed

from dualpath.sim.paper.experiment import Outcomes
from dualpath.sim.paper.run import Outcome, Run, execute
from dualpath.sim.workers import simulating_processes

NUM_WORKERS = 2


def execute_all(runs: Iterable[Run], advance: Callable[[float], None], workers: int = NUM_WORKERS) -> Outcomes:
    """Every different run once, the longest first. ``advance`` is told the weight of each that is done."""
    different = sorted(dict.fromkeys(runs), key=lambda run: -run.weight)
    found: dict[Run, Outcome] = {}
    if workers < 2 or len(different) < 2:
        for run in different:
            found[run] = execute(run)
            advance(run.weight)
        return found
    with simulating_processes(workers) as pool:
        tasks = {pool.submit(execute, run): run for run in different}
        for task in as_completed(tasks):
            found[tasks[task]] = task.result()
            advance(tasks[task].weight)
    return found

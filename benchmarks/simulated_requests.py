"""What does a simulated request cost, from 48 to 1,152 GPUs? CPU time of the 660B's offline job, every policy called.

The same load per node on 2P4D, 8P16D and 48P96D, for some simulated seconds after the first rush. Beside it 24
independent 2P4D clusters in one process, one after the other and by turns of 0.1 simulated seconds: they take the same
steps as one 2P4D cluster, but by turns they walk through as much memory as 48P96D. What is dearer there is the memory.
With --whole the 48P96D job runs to its end instead, with --update-every once for each way in which weights may change.
"make compiled" first; the first line says what runs.
"""

from __future__ import annotations

import argparse
import gc
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import dualpath
from dualpath.report.updates import KINDS
from dualpath.sim.compiled import require_current
from dualpath.sim.paper.run import Run
from dualpath.sim.simulation import Simulation, prepare, simulate

AGENTS_PER_PREFILL_NODE = 1024
NUM_SMALL = 24  # clusters of 2P4D with the agents of 48P96D
TURN_S = 0.1


def cluster(prefill_nodes: int) -> Simulation:
    run = Run("660B", "shorter", prefill_nodes, 2 * prefill_nodes, AGENTS_PER_PREFILL_NODE * prefill_nodes)
    return prepare(run.spec, run.spec.model.cost(), run.system)


def advance(simulations: Sequence[Simulation], now_s: float, until_s: float, turn_s: float) -> None:
    while now_s < until_s:
        now_s = min(until_s, now_s + turn_s)
        for one in simulations:
            one.agenda.run(now_s)


def counts(simulations: Sequence[Simulation]) -> tuple[int, int]:
    """Finished requests, events."""
    return sum(one.observer.num_all_requests for one in simulations), sum(one.agenda.num_fired for one in simulations)


def report(what: str, simulations: Sequence[Simulation], from_s: float, until_s: float, turn_s: float) -> None:
    """Advance them by turns, and print what a request that finished after ``from_s`` took."""
    advance(simulations, 0.0, from_s, from_s)
    requests_before, events_before = counts(simulations)
    start_s = time.process_time()
    advance(simulations, from_s, until_s, turn_s)
    cpu_s = time.process_time() - start_s
    num_requests, num_events = counts(simulations)
    num_requests, num_events = num_requests - requests_before, num_events - events_before
    print(
        f"{what:<34}{num_requests:>10,} requests  {num_events / num_requests:4.2f} events each"
        f"  {cpu_s / num_requests * 1e6:6.1f} us each  {num_requests / cpu_s:>8,.0f} requests/s",
        flush=True,
    )


def report_whole(rounds: int | None, every: int | None, load_s: float, kind: str | None) -> None:
    """One run of 48P96D to its end. ``every``, ``load_s``, ``kind``: new weights, as in ``sim.updates``."""
    run = Run("660B", "shorter", 48, 96, AGENTS_PER_PREFILL_NODE * 48)
    spec = run.spec
    spec = replace(
        spec,
        workload=replace(spec.workload, rounds=rounds),
        updates=replace(spec.updates, every=every, load_s=load_s),
    )
    start_s = time.process_time()
    simulation = simulate(spec, spec.model.cost(), run.system, kind=kind)
    cpu_s = time.process_time() - start_s
    observer, updates = simulation.observer, simulation.life.updates
    num_requests, num_updates = observer.num_all_requests, 0 if updates is None else updates.num_updates
    print(
        f"48P96D to its end, {kind or 'no update'}: {num_requests:,} requests, {simulation.agenda.num_fired:,} events,"
        f" {num_updates} updates, JCT {observer.end_s:,.1f} s; {cpu_s:.1f} s of CPU,"
        f" {num_requests / cpu_s:,.0f} requests/s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from-s", type=float, default=200.0, help="simulated time (default: 200)")
    parser.add_argument("--until-s", type=float, default=500.0, help="simulated time (default: 500)")
    parser.add_argument("--whole", action="store_true", help="48P96D to its end instead: minutes")
    parser.add_argument("--rounds", type=int, help="with --whole: turns of each agent, at most")
    parser.add_argument("--update-every", type=int, help="with --whole: new weights after so many turns of all agents")
    parser.add_argument("--load-s", type=float, default=60.0, help="until they are loaded (default: 60)")
    arguments = parser.parse_args()
    num_compiled = require_current(Path(dualpath.__file__).parent)
    print(f"{num_compiled} compiled modules" if num_compiled else "plain Python, nothing compiled")
    if arguments.whole:
        for kind in (None,) if arguments.update_every is None else KINDS:
            report_whole(arguments.rounds, arguments.update_every, arguments.load_s, kind)
        return
    gc.disable()  # as in Simulation.run
    from_s, until_s = arguments.from_s, arguments.until_s
    step_s = until_s - from_s
    report("2P4D, 2,048 agents", [cluster(2)], from_s, until_s, step_s)
    report("8P16D, 8,192 agents", [cluster(8)], from_s, until_s, step_s)
    report("48P96D, 49,152 agents", [cluster(48)], from_s, until_s, step_s)
    report("24 x 2P4D, one after the other", [cluster(2) for _ in range(NUM_SMALL)], from_s, until_s, step_s)
    report("24 x 2P4D, by turns", [cluster(2) for _ in range(NUM_SMALL)], from_s, until_s, TURN_S)


if __name__ == "__main__":
    main()

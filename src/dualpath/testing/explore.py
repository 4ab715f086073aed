"""Search seeds for a world in which something goes wrong; make what is found smaller, and print how to see it again.

python -m dualpath.testing.explore --seeds 0-999 --jobs 2
python -m dualpath.testing.explore --seeds 17 --trace
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace

from dualpath.testing import scenario as scenarios
from dualpath.testing.scenario import Scenario
from dualpath.testing.world import Outcome, run

_CHUNK = 20  # seeds that a process is given at once
_MAX_SHRINKING_RUNS = 200


@dataclass(slots=True)
class Summary:
    """What all seeds together came to."""

    num_seeds: int = 0
    num_answers: int = 0
    num_failures: int = 0
    num_aborted: int = 0
    num_retries: int = 0
    num_late: int = 0
    num_stored: int = 0
    num_updates: int = 0
    num_mixed: int = 0
    virtual_s: float = 0.0
    paths: Counter[str] = field(default_factory=Counter)
    found: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.num_seeds += 1
        self.num_answers += outcome.num_answers
        self.num_failures += outcome.num_failures
        self.num_aborted += outcome.num_aborted
        self.num_retries += outcome.num_retries
        self.num_late += outcome.num_late
        self.num_stored += outcome.num_stored
        self.num_updates += outcome.num_updates
        self.num_mixed += outcome.num_mixed
        self.virtual_s += outcome.virtual_s
        self.paths.update(outcome.paths)
        if outcome.violation is not None:
            self.found.append(outcome)

    def text(self, took_s: float) -> str:
        paths = ", ".join(f"{name} {count}" for name, count in sorted(self.paths.items()))
        return (
            f"{self.num_seeds} seeds in {took_s:.1f} s ({self.num_seeds / max(took_s, 1e-9):.1f}/s), "
            f"{self.virtual_s / 3600:.1f} h of virtual time: {self.num_answers} answers right ({paths}), "
            f"{self.num_failures} refused with a clear error while nothing could serve them, "
            f"{self.num_aborted} given up by clients, {self.num_retries} retries, {self.num_late} runs of bytes "
            f"that came after their transfer had failed, {self.num_stored} stored blocks compared; "
            f"{self.num_updates} updates of weights, {self.num_mixed} answers with tokens of several; "
            f"{len(self.found)} violations"
        )


def explore(seeds: Iterable[int], jobs: int = 1, *, stop_at_first: bool = True) -> Summary:
    """Run seeds, in order or on several processes."""
    summary = Summary()
    for outcome in _outcomes(seeds, jobs):
        summary.add(outcome)
        if summary.found and stop_at_first:
            break
    return summary


def run_seed(seed: int) -> Outcome:
    return run(scenarios.draw(seed))


def shrink(scenario: Scenario) -> Scenario:
    """Leave out agents, turns and faults as long as something still goes wrong."""
    runs = 0

    def fails(candidate: Scenario) -> bool:
        nonlocal runs
        runs += 1
        return runs <= _MAX_SHRINKING_RUNS and run(candidate).violation is not None

    is_smaller = True
    while is_smaller:
        is_smaller = False
        for candidate in _smaller(scenario):
            if fails(candidate):
                scenario, is_smaller = candidate, True
                break
    return scenario


def replay_command(scenario: Scenario) -> str:
    whole = scenarios.draw(scenario.seed)
    parts = [f"python -m dualpath.testing.explore --seeds {scenario.seed}"]
    if len(scenario.agents) < len(whole.agents):
        parts.append("--agents " + ",".join(str(agent.number) for agent in scenario.agents))
    if len(scenario.updates) < len(whole.updates):
        parts.append("--updates " + (",".join(str(update.number) for update in scenario.updates) or "none"))
    if len(scenario.faults) < len(whole.faults):
        parts.append("--faults " + (",".join(str(fault.number) for fault in scenario.faults) or "none"))
    most = max((len(agent.turns) for agent in scenario.agents), default=0)
    if most < max(len(agent.turns) for agent in whole.agents):
        parts.append(f"--turns {most}")
    return " ".join([*parts, "--trace"])


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    """Half of the faults, one fault, one agent, one turn less."""
    faults = scenario.faults
    if len(faults) > 3:
        half = len(faults) // 2
        yield replace(scenario, faults=faults[:half])
        yield replace(scenario, faults=faults[half:])
    for index in range(len(faults)):
        yield replace(scenario, faults=(*faults[:index], *faults[index + 1 :]))
    updates = scenario.updates
    for index in range(len(updates)):
        yield replace(scenario, updates=(*updates[:index], *updates[index + 1 :]))
    agents = scenario.agents
    for index in range(len(agents) if len(agents) > 1 else 0):
        yield replace(scenario, agents=(*agents[:index], *agents[index + 1 :]))
    most = max((len(agent.turns) for agent in agents), default=0)
    if most > 1:
        yield replace(scenario, agents=tuple(replace(agent, turns=agent.turns[: most - 1]) for agent in agents))


def _outcomes(seeds: Iterable[int], jobs: int) -> Iterator[Outcome]:
    if jobs == 1:
        yield from map(run_seed, seeds)
        return
    with ProcessPoolExecutor(jobs, initializer=_silence) as pool:
        try:
            yield from pool.map(_run_without_trace, seeds, chunksize=_CHUNK)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _run_without_trace(seed: int) -> Outcome:
    return replace(run_seed(seed), trace=[])


def _silence() -> None:
    logging.disable(logging.CRITICAL)


# -- the command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = _parse(arguments)
    except argparse.ArgumentTypeError as error:
        print(f"explore: {error}", file=sys.stderr)
        return 2
    if not options.logs:
        _silence()
    if len(options.seeds) == 1:
        return _show(options)
    start_s = time.monotonic()
    summary = explore(options.seeds, options.jobs, stop_at_first=not options.all)
    print(summary.text(time.monotonic() - start_s))
    for outcome in summary.found:
        print(f"seed {outcome.seed}: {outcome.violation}")
    if summary.found:
        smallest = shrink(scenarios.draw(summary.found[0].seed))
        print(f"smaller, {len(smallest.agents)} agents and {len(smallest.faults)} faults: {run(smallest).violation}")
        print(f"see it again: {replay_command(smallest)}")
    return 1 if summary.found else 0


def _show(options: argparse.Namespace) -> int:
    """One seed, perhaps a part of it."""
    whole = scenarios.draw(options.seeds[0])
    outcome = run(whole.keep(options.agents, options.faults, options.turns, options.updates))
    if options.trace:
        print(f"{replace(whole, agents=(), faults=(), updates=())}")
        print("\n".join(outcome.trace))
    print(
        f"seed {outcome.seed}: {outcome.num_answers} answers right, {outcome.num_failures} refused, "
        f"{outcome.num_retries} retries, {outcome.virtual_s:.0f} virtual s, {outcome.num_steps} steps, "
        f"trace {outcome.digest}"
    )
    if outcome.violation is not None:
        print(f"violation: {outcome.violation}")
    return 0 if outcome.violation is None else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dualpath.testing.explore", description=__doc__)
    parser.add_argument("--seeds", type=_range, required=True, metavar="A-B", help="first and last seed, or one")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--all", action="store_true", help="go on after the first violation")
    parser.add_argument("--trace", action="store_true", help="of one seed: print what happened when")
    parser.add_argument("--logs", action="store_true", help="show what the code under test logs")
    parser.add_argument("--agents", type=_numbers, help="of one seed: only these agents")
    parser.add_argument("--faults", type=_numbers, help="of one seed: only these faults, or none")
    parser.add_argument("--updates", type=_numbers, help="of one seed: only these updates of weights, or none")
    parser.add_argument("--turns", type=int, help="of one seed: at most so many turns of each agent")
    return parser.parse_args(arguments)


def _range(text: str) -> range:
    parts = text.split("-")
    if len(parts) > 2 or not all(part.isdigit() for part in parts) or int(parts[-1]) < int(parts[0]):
        raise argparse.ArgumentTypeError(f"seeds are a number or two, the smaller first: 0-999, not {text!r}")
    return range(int(parts[0]), int(parts[-1]) + 1)


def _numbers(text: str) -> set[int]:
    if text == "none":
        return set()
    if not all(part.isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"numbers with commas between, not {text!r}")
    return {int(part) for part in text.split(",")}


if __name__ == "__main__":
    sys.exit(main())

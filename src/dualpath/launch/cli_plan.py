"""``dualpath plan``: the cheapest cluster for a model and a workload, by simulation."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualpath.core.errors import ConfigError

if TYPE_CHECKING:
    from dualpath.sim.plan.question import Question

_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(GB|GiB|TB|TiB|MB)?")
_UNITS = {None: 1.0, "MB": 1e6, "GB": 1e9, "TB": 1e12, "GiB": 2.0**30, "TiB": 2.0**40}
# Of peak, for every kernel of a named model: between what DeepSeek reports of its own serving (about 15 % of FP8 peak,
# "DeepSeek-V3/R1 Inference System Overview", 2025) and what decode kernels get of HBM.
EFFICIENCY = 0.5
PREFILL_BASE_S, DECODE_BASE_S = 0.1, 0.01  # launches and collectives of a forward and of a step, a cautious guess


def add(verbs: Any) -> None:
    plan = verbs.add_parser(
        "plan",
        help="size a cluster for a model and a workload",
        description="Search node counts, P/D ratio, storage NICs, staging memory and path policy for the cheapest"
        " cluster that serves a workload within its limits; every candidate that bounds leave is simulated.",
    )
    plan.add_argument("--model", metavar="NAME|FILE", help="a model of the catalogue, or a config.json")
    plan.add_argument("--gpu", metavar="NAME", help="a GPU of the catalogue, e.g. H800")
    plan.add_argument(
        "--spec", type=Path, metavar="FILE.toml", help="a simulation's settings, e.g. measured model costs"
    )
    _add_workload(plan)
    _add_space(plan)
    plan.add_argument("--price-per-gpu-hour", type=float, default=0.0, metavar="X", help="in any currency")
    plan.add_argument("--price-per-nic-hour", type=float, default=0.0, metavar="X", help="of one storage NIC")
    plan.add_argument("--price-per-staging-gb-hour", type=float, default=0.0, metavar="X", help="of 1e9 bytes")
    plan.add_argument("--workers", type=int, default=2, metavar="N", help="processes that simulate (default: 2)")
    plan.add_argument("--max-simulations", type=int, default=120, metavar="N", help="of the search (default: 120)")
    plan.add_argument("--seeds", type=int, default=3, metavar="N", help="other seeds of the final check (default: 3)")
    plan.add_argument("--json", type=Path, metavar="OUT", help="write the answer for programs")
    plan.add_argument("--html", type=Path, metavar="OUT", help="write the answer as a page")
    plan.set_defaults(run=_run)


def _add_workload(plan: argparse.ArgumentParser) -> None:
    plan.add_argument("--trace", metavar="FILE|synth:64K", help="trajectories (default: synth:64K)")
    for name, what in (
        ("turns", "turns of an agent"),
        ("append", "tokens that a turn appends"),
        ("generate", "tokens"),
    ):
        plan.add_argument(f"--{name}", type=float, metavar="N", help=f"instead of a trace: mean {what}")
    plan.add_argument("--context", type=float, metavar="N", help="instead of a trace: mean prompt tokens of a request")
    plan.add_argument("--aps", type=float, metavar="X", help="agents that arrive per second")
    plan.add_argument("--agents", type=int, metavar="N", help="agents that all start at once, instead of --aps")
    plan.add_argument("--ttft-slo-s", type=float, default=4.0, metavar="S", help="limit (default: 4)")
    plan.add_argument("--tpot-slo-s", type=float, default=0.05, metavar="S", help="limit (default: 0.05)")
    plan.add_argument("--slo-statistic", default="mean", metavar="mean|p50|p90|p99", help="what limits are on")
    plan.add_argument("--max-jct-s", type=float, metavar="S", help="with --agents: limit on the time of the whole job")
    plan.add_argument(
        "--think-s", type=float, default=0.0, metavar="S", help="tool time before every turn but the first"
    )
    plan.add_argument("--seed", type=int, default=0, metavar="N", help="of the search (default: 0)")


def _add_space(plan: argparse.ArgumentParser) -> None:
    plan.add_argument("--max-nodes", type=int, default=16, metavar="N", help="P + D at most (default: 16)")
    plan.add_argument("--engines", type=int, metavar="N", help="GPUs of a node (default: as the GPU's usual node has)")
    plan.add_argument(
        "--group-engines",
        metavar="N,...",
        help="GPUs that share one copy of the FFN (default: the fewest nodes', and twice as many)",
    )
    plan.add_argument("--storage-nics", default="1,2", metavar="N,...", help="of a node (default: 1,2)")
    plan.add_argument("--storage-nic-gbps", default="400", metavar="X,...", help="speeds to choose from (default: 400)")
    plan.add_argument("--staging", default="80GB", metavar="SIZE,...", help="memory of a node (default: 80GB)")
    plan.add_argument("--systems", default="basic,shorter,split", metavar="NAME,...", help="path policies to compare")
    plan.add_argument(
        "--efficiency", type=float, metavar="X", help=f"of a named model's kernels (default: {EFFICIENCY})"
    )
    plan.add_argument("--prefill-base-s", type=float, metavar="S", help=f"of a forward (default: {PREFILL_BASE_S})")
    plan.add_argument("--decode-base-s", type=float, metavar="S", help=f"of a decode step (default: {DECODE_BASE_S})")


def _run(arguments: argparse.Namespace) -> int:
    from dualpath.sim.compiled import require_current

    require_current()
    from dualpath.launch.plan_question import question_from
    from dualpath.launch.plan_run import run
    from dualpath.sim.workers import MAX_WORKERS

    if not 1 <= arguments.workers <= MAX_WORKERS:
        raise ConfigError(f"--workers: must be from 1 to {MAX_WORKERS}, not {arguments.workers}")
    question: Question = question_from(arguments)
    return run(question, arguments.workers, arguments.json, arguments.html)


def numbers(flag: str, text: str, least: float = 0.0) -> tuple[float, ...]:
    """ "1,2" as numbers above ``least``. Raises ConfigError."""
    found = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not (value > least and math.isfinite(value)):
            raise ConfigError(f"{flag}: must be numbers above {least:g} with commas between, not {text!r}")
        found.append(value)
    return tuple(found)


def counts(flag: str, text: str) -> tuple[int, ...]:
    """ "1,2" as whole numbers. Raises ConfigError."""
    found = numbers(flag, text)
    if any(value != int(value) for value in found):
        raise ConfigError(f"{flag}: must be whole numbers with commas between, not {text!r}")
    return tuple(int(value) for value in found)


def sizes(flag: str, text: str) -> tuple[int, ...]:
    """ "80GB,1TiB" as bytes. Raises ConfigError."""
    found = []
    for part in text.split(","):
        match = _BYTES.fullmatch(part.strip())
        value = float(match[1]) * _UNITS[match[2]] if match else 0.0
        if value < 1:
            raise ConfigError(f"{flag}: must be sizes such as 80GB or 1TiB with commas between, not {text!r}")
        found.append(int(value))
    return tuple(found)

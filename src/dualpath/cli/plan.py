"""``dualpath plan``: the cheapest cluster for a model and a workload, by simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dualpath.cli.assumptions import DECODE_BASE_S, EFFICIENCY, PREFILL_BASE_S
from dualpath.cli.command import add_command
from dualpath.config.fields import Options, setting
from dualpath.core.errors import ConfigError


class PlanOptions(Options):
    """Search node counts, P/D ratio, storage NICs, staging memory and path policy for the cheapest cluster that serves
    a workload within its limits; every candidate that bounds leave is simulated.
    """

    model: str | None = setting(None, metavar="NAME|FILE", help="a model of the catalogue, or a config.json")
    gpu: str | None = setting(None, metavar="NAME", help="a GPU of the catalogue, e.g. H800")
    spec: Path | None = setting(None, metavar="FILE.toml", help="a simulation's settings, e.g. measured model costs")
    trace: str | None = setting(
        None, metavar="FILE|synth:64K", none_means="the spec's, else synth:64K", help="trajectories"
    )
    turns: int | None = setting(None, help="instead of a trace: mean turns of an agent")
    append: float | None = setting(None, metavar="N", help="instead of a trace: mean tokens that a turn appends")
    generate: float | None = setting(None, metavar="N", help="instead of a trace: mean tokens that a turn generates")
    context: float | None = setting(None, metavar="N", help="instead of a trace: mean prompt tokens of a request")
    aps: float | None = setting(None, help="agents that arrive per second")
    agents: int | None = setting(None, help="agents that all start at once, instead of --aps")
    ttft_slo_s: float = setting(4.0, metavar="S", help="limit on the time to first token")
    tpot_slo_s: float = setting(0.05, metavar="S", help="limit on the time per token after the first")
    slo_statistic: str = setting("mean", metavar="mean|p50|p90|p99", help="what limits are on")
    update_every: int | None = setting(
        None,
        metavar="N",
        minimum=1,
        none_means="the spec's, else never",
        help="with --agents: the weights change after every N turns of all agents",
    )
    max_jct_s: float | None = setting(None, metavar="S", help="with --agents: limit on the time of the whole job")
    think_s: float = setting(0.0, metavar="S", help="tool time before every turn but the first")
    seed: int = setting(0, help="of the search")
    max_nodes: int = setting(16, help="P + D at most")
    engines: int | None = setting(
        None, minimum=1, maximum=64, none_means="as the GPU's usual node has", help="GPUs of a node"
    )
    group_engines: tuple[int, ...] = setting(
        (),
        minimum=1,
        many="commas",
        none_means="the fewest nodes', and twice as many",
        help="GPUs that share one copy of the FFN",
    )
    storage_nics: tuple[int, ...] = setting((1, 2), minimum=1, many="commas", help="of a node")
    storage_nic_gbps: tuple[float, ...] = setting((400.0,), above=0, many="commas", help="speeds to choose from")
    staging_bytes: tuple[int, ...] = setting(
        (80 * 10**9,), flag="staging", minimum=1, many="commas", help="memory of a node"
    )
    systems: tuple[str, ...] = setting(
        ("basic", "shorter", "split"), metavar="NAME", many="commas", help="path policies to compare"
    )
    efficiency: float = setting(EFFICIENCY, help="of a named model's kernels")
    prefill_base_s: float = setting(PREFILL_BASE_S, metavar="S", help="of a forward")
    decode_base_s: float = setting(DECODE_BASE_S, metavar="S", help="of a decode step")
    price_per_gpu_hour: float = setting(0.0, help="in any currency")
    price_per_nic_hour: float = setting(0.0, help="of one storage NIC")
    price_per_staging_gb_hour: float = setting(0.0, help="of 1e9 bytes")
    workers: int = setting(2, help="processes that simulate")
    max_simulations: int = setting(120, help="of the search")
    seeds: int = setting(3, help="other seeds of the final check")
    json: Path | None = setting(None, metavar="OUT", help="write the answer for programs")
    html: Path | None = setting(None, metavar="OUT", help="write the answer as a page")


def add(verbs: Any) -> None:
    add_command(verbs, "plan", "size a cluster for a model and a workload", _run, PlanOptions)


def _run(options: PlanOptions) -> int:
    from dualpath.sim.compiled import require_current

    require_current()
    from dualpath.cli.plan_question import question_from
    from dualpath.cli.plan_run import run
    from dualpath.sim.workers import MAX_WORKERS

    if not 1 <= options.workers <= MAX_WORKERS:
        raise ConfigError(f"--workers: must be from 1 to {MAX_WORKERS}, not {options.workers}")
    return run(question_from(options), options.workers, options.json, options.html)

"""From what ``dualpath plan`` was told to the planner's question."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dualpath.core.errors import ConfigError
from dualpath.sim.catalogue.gpus import find_gpu
from dualpath.sim.plan.question import Prices, Question, Space
from dualpath.sim.plan.statistics import TurnStatistics
from dualpath.sim.spec import ModelSpec, SimSpec, WorkloadSpec, load_spec

if TYPE_CHECKING:
    from dualpath.cli.plan import PlanOptions


def question_from(options: PlanOptions) -> Question:
    """Raises ConfigError naming the flag, its value and what is wrong with it."""
    base = load_spec(options.spec) if options.spec else SimSpec()
    base = replace(base, model=_model(options, base.model), workload=_workload(options, base.workload))
    if options.update_every is not None:
        if options.agents is None:
            raise ConfigError("--update-every: goes with --agents, not with --aps")
        base = replace(base, updates=replace(base.updates, every=options.update_every))
    cluster = base.cluster
    if options.gpu:
        cluster = replace(cluster, compute_nic_bytes_per_s=find_gpu(options.gpu).cnic.bytes_per_s)
    return Question(
        base=replace(base, cluster=cluster),
        space=_space(options, base),
        prices=Prices(options.price_per_gpu_hour, options.price_per_nic_hour, options.price_per_staging_gb_hour),
        statistics=_statistics(options),
        max_jct_s=options.max_jct_s,
        limit_statistic=options.slo_statistic,
        num_seeds=options.seeds,
        max_simulations=options.max_simulations,
    )


def _model(options: PlanOptions, given: ModelSpec) -> ModelSpec:
    """A name makes the file's costs void; without one the file must have them."""
    if options.model is None:
        if options.spec is None:
            raise ConfigError("--model: is required, or --spec with a [model]")
        return given
    if options.gpu is None:
        raise ConfigError("--gpu: is required with --model")
    find_gpu(options.gpu)
    return ModelSpec(
        name=options.model,
        gpu=options.gpu,
        efficiency=options.efficiency,
        prefill_base_s=options.prefill_base_s,
        decode_base_s=options.decode_base_s,
    )


def _workload(options: PlanOptions, given: WorkloadSpec) -> WorkloadSpec:
    if (options.aps is None) == (options.agents is None):
        raise ConfigError("--aps or --agents: give one of them")
    return replace(
        given,
        trace=options.trace or given.trace,
        aps=options.aps,
        agents=given.agents if options.agents is None else options.agents,
        ttft_slo_s=options.ttft_slo_s,
        tpot_slo_s=options.tpot_slo_s,
        think_s=options.think_s,
        seed=options.seed,
    )


def _space(options: PlanOptions, base: SimSpec) -> Space:
    usual = find_gpu(options.gpu).gpus_per_node if options.gpu else base.cluster.engines_per_node
    return Space(
        engines_per_node=usual if options.engines is None else options.engines,
        group_engines=options.group_engines,
        max_nodes=options.max_nodes,
        snics=options.storage_nics,
        snic_gbps=options.storage_nic_gbps,
        staging_bytes=options.staging_bytes,
        systems=tuple(dict.fromkeys(options.systems)),
    )


def _statistics(options: PlanOptions) -> TurnStatistics | None:
    turns, append, generate = options.turns, options.append, options.generate
    if turns is None and append is None and generate is None and options.context is None:
        return None
    for flag, value in (("--turns", turns), ("--append", append), ("--generate", generate)):
        if value is None:
            raise ConfigError(f"{flag}: is required with the other statistics of a workload")
    if options.trace:
        raise ConfigError(f"--trace: {options.trace} says what --turns, --append and --generate say, too; give one")
    assert turns is not None and append is not None and generate is not None  # noqa: PT018
    return TurnStatistics(turns, append, generate, options.context)

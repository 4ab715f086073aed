"""From the flags of ``dualpath plan`` to the planner's question."""

from __future__ import annotations

import argparse
from dataclasses import replace

from dualpath.core.errors import ConfigError
from dualpath.launch.cli_plan import DECODE_BASE_S, EFFICIENCY, PREFILL_BASE_S, counts, numbers, sizes
from dualpath.sim.catalogue.gpus import find_gpu
from dualpath.sim.plan.question import Prices, Question, Space
from dualpath.sim.plan.statistics import TurnStatistics
from dualpath.sim.spec import ModelSpec, SimSpec, WorkloadSpec, load_spec


def question_from(arguments: argparse.Namespace) -> Question:
    """Raises ConfigError naming the flag, its value and what is wrong with it."""
    base = load_spec(arguments.spec) if arguments.spec else SimSpec()
    base = replace(base, model=_model(arguments, base.model), workload=_workload(arguments, base.workload))
    cluster = base.cluster
    if arguments.gpu:
        cluster = replace(cluster, compute_nic_bytes_per_s=find_gpu(arguments.gpu).cnic.bytes_per_s)
    return Question(
        base=replace(base, cluster=cluster),
        space=_space(arguments, base),
        prices=Prices(arguments.price_per_gpu_hour, arguments.price_per_nic_hour, arguments.price_per_staging_gb_hour),
        statistics=_statistics(arguments),
        max_jct_s=arguments.max_jct_s,
        limit_statistic=arguments.slo_statistic,
        num_seeds=arguments.seeds,
        max_simulations=arguments.max_simulations,
    )


def _model(arguments: argparse.Namespace, given: ModelSpec) -> ModelSpec:
    """A name makes the file's costs void; without one the file must have them."""
    if arguments.model is None:
        if arguments.spec is None:
            raise ConfigError("--model: is required, or --spec with a [model]")
        return given
    if arguments.gpu is None:
        raise ConfigError("--gpu: is required with --model")
    find_gpu(arguments.gpu)
    return ModelSpec(
        name=arguments.model,
        gpu=arguments.gpu,
        efficiency=EFFICIENCY if arguments.efficiency is None else arguments.efficiency,
        prefill_base_s=PREFILL_BASE_S if arguments.prefill_base_s is None else arguments.prefill_base_s,
        decode_base_s=DECODE_BASE_S if arguments.decode_base_s is None else arguments.decode_base_s,
    )


def _workload(arguments: argparse.Namespace, given: WorkloadSpec) -> WorkloadSpec:
    if (arguments.aps is None) == (arguments.agents is None):
        raise ConfigError("--aps or --agents: give one of them")
    return replace(
        given,
        trace=arguments.trace or given.trace,
        aps=arguments.aps,
        agents=given.agents if arguments.agents is None else arguments.agents,
        ttft_slo_s=arguments.ttft_slo_s,
        tpot_slo_s=arguments.tpot_slo_s,
        think_s=arguments.think_s,
        seed=arguments.seed,
    )


def _space(arguments: argparse.Namespace, base: SimSpec) -> Space:
    engines = arguments.engines
    if engines is None:
        engines = find_gpu(arguments.gpu).gpus_per_node if arguments.gpu else base.cluster.engines_per_node
    if not 1 <= engines <= 64:
        raise ConfigError(f"--engines: must be from 1 to 64, not {engines}")
    group = counts("--group-engines", arguments.group_engines) if arguments.group_engines else ()
    return Space(
        engines_per_node=engines,
        group_engines=group,
        max_nodes=arguments.max_nodes,
        snics=counts("--storage-nics", arguments.storage_nics),
        snic_gbps=numbers("--storage-nic-gbps", arguments.storage_nic_gbps),
        staging_bytes=sizes("--staging", arguments.staging),
        systems=tuple(dict.fromkeys(name.strip() for name in arguments.systems.split(",") if name.strip())),
    )


def _statistics(arguments: argparse.Namespace) -> TurnStatistics | None:
    given = {name: getattr(arguments, name) for name in ("turns", "append", "generate")}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given) and arguments.context is None:
        return None
    if missing:
        raise ConfigError(f"--{missing[0]}: is required with the other statistics of a workload")
    if arguments.trace:
        raise ConfigError(f"--trace: {arguments.trace} says what --turns, --append and --generate say, too; give one")
    if not float(given["turns"]).is_integer():
        raise ConfigError(f"--turns: must be a whole number, not {given['turns']:g}")
    return TurnStatistics(int(given["turns"]), given["append"], given["generate"], arguments.context)

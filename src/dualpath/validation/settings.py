"""What ``dualpath sim validate`` can be told: what ``bench rollout`` can, with several shapes and repetitions."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from dualpath.bench.settings import PER_SYSTEM, BenchStoreTable, RolloutSettings, RolloutTable, system_names
from dualpath.config import ClusterConfig, DeadlineConfig, MemoryConfig, ModelConfig
from dualpath.config.fields import Table, setting
from dualpath.core.errors import ConfigError
from dualpath.sim.spec import MAX_AGENTS

PER_SHAPE = ("prefill", "decode")  # of the cluster: not the same for all
SHAPE = re.compile(r"([1-9][0-9]{0,2})P([1-9][0-9]{0,2})D")


@dataclass(frozen=True, kw_only=True)
class ValidationWorkload(RolloutTable):
    """What the agents do, on both sides."""

    agents: int = setting(12, minimum=1, maximum=MAX_AGENTS, help="agents; more than the trace has are resampled")
    systems: str = setting(
        "basic,shorter,split", metavar="NAME,...", help="what to run; oracle moves nothing: left out"
    )


@dataclass(frozen=True, kw_only=True)
class ValidationTable(Table):
    """What is compared, how often."""

    TABLE = "validation"
    shapes: str = setting("1P1D,1P2D", metavar="xPyD,...", help="prefill and decode nodes of the clusters to compare")
    repeat: int = setting(1, minimum=1, maximum=100, help="live runs of each system; their mean is compared")


@dataclass(frozen=True, kw_only=True)
class ValidationOutput(Table):
    """Where the results go, beside the terminal."""

    TABLE = "output"
    json: Path | None = setting(None, metavar="OUT", none_means="not written", help="write all numbers to this file")
    write_spec: Path | None = setting(
        None,
        metavar="FILE.toml",
        none_means="not written",
        help="write the cluster for dualpath sim run; one shape only",
    )


@dataclass(frozen=True, kw_only=True)
class ValidateSettings:
    """Everything ``dualpath sim validate`` needs."""

    model: ModelConfig
    workload: ValidationWorkload
    validation: ValidationTable = field(default_factory=ValidationTable)
    output: ValidationOutput = field(default_factory=ValidationOutput)
    store: BenchStoreTable = field(default_factory=BenchStoreTable)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    deadlines: DeadlineConfig = field(default_factory=DeadlineConfig)


def check(settings: ValidateSettings) -> None:
    """Raises ConfigError for what cannot be compared."""
    if settings.cluster.storage_nic_mbps is None:
        raise ConfigError("--storage-nic-mbps: is required, the simulator must know how fast storage NICs are")
    if settings.cluster.engine != "builtin":
        raise ConfigError(f"--engine {settings.cluster.engine}: the simulator knows engines of ours")
    if "oracle" in system_names(settings.workload.systems):
        raise ConfigError("--systems: oracle moves nothing, so there is nothing to compare")
    if settings.output.write_spec is not None and len(shapes(settings)) > 1:
        raise ConfigError("--write-spec: a spec describes one cluster; give one shape with --shapes")


def shapes(settings: ValidateSettings) -> list[str]:
    """Names like 1P2D. Raises ConfigError for others, or one given twice."""
    text = settings.validation.shapes
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not SHAPE.fullmatch(name):
            raise ConfigError(f"--shapes: {name!r} is no shape like 1P2D")
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"--shapes: name every shape once, not {text!r}")
    return names


def threads_per_engine(settings: ValidateSettings) -> int:
    """The same for all shapes, so that one profile holds for all: what the largest has for each engine."""
    engines = max(sum(_nodes(name)) for name in shapes(settings)) * settings.cluster.engines_per_node
    return settings.cluster.threads_per_engine or max(1, (os.cpu_count() or 1) // engines)


def for_shape(settings: ValidateSettings, shape: str) -> RolloutSettings:
    prefill, decode = _nodes(shape)
    threads = threads_per_engine(settings)
    return RolloutSettings(
        model=settings.model,
        workload=settings.workload,
        store=settings.store,
        cluster=replace(settings.cluster, prefill=prefill, decode=decode, threads_per_engine=threads),
        memory=settings.memory,
        deadlines=settings.deadlines,
    )


def reject_per_shape(given: object) -> None:
    """Raises ConfigError for flags that ``--systems`` and ``--shapes`` replace."""
    assert isinstance(given, dict)
    for names, instead in ((PER_SYSTEM, "--systems"), (PER_SHAPE, "--shapes")):
        for name in names:
            if ("cluster", name) in given:
                raise ConfigError(f"--{name.replace('_', '-')}: several clusters are compared; see {instead}")


def _nodes(shape: str) -> tuple[int, int]:
    found = SHAPE.fullmatch(shape)
    assert found is not None
    return int(found[1]), int(found[2])

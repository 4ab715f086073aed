"""What the comparison benchmarks can be told: their own settings, beside those that every cluster has."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dualpath.config import ClusterConfig, DeadlineConfig, MemoryConfig, ModelConfig, ServeConfig, StoreConfig
from dualpath.config.fields import Table, setting
from dualpath.config.serve import SYSTEMS, SchedulerConfig
from dualpath.config.vllm import VllmConfig
from dualpath.core.errors import ConfigError

MAX_AGENTS = 1_000_000
LONGEST_WAIT_S = 604_800.0  # a week: agents of a rollout all come at once, and the last of them waits for all others
PER_SYSTEM = ("path", "system", "allow_invalid_answers")  # of the cluster: not the same for all
NOT_IN_SERVING = (*PER_SYSTEM, "join")
NOT_IN_ROLLOUTS = (*NOT_IN_SERVING, "front_door")


@dataclass(frozen=True, kw_only=True)
class TraceTable(Table):
    """What the agents do."""

    TABLE = "workload"
    trace: str = setting(metavar="FILE|synth:64K", help="trajectories to replay: a file, a directory, or synth:SHAPE")
    rounds: int | None = setting(None, minimum=1, none_means="all", help="turns of each agent, at most")
    scale: float = setting(1.0, above=0, maximum=1000, help="factor on all lengths: fits long traces to small models")
    seed: int = setting(0, minimum=0, maximum=2**31 - 1, help="of the tokens, of resampling and of arrivals")
    think: float = setting(0.0, minimum=0, maximum=1000, help="factor on the trace's think times; 0 leaves them out")
    systems: str = setting(
        "basic,split", metavar="NAME,...", help=f"what to compare, the first being the reference: {', '.join(SYSTEMS)}"
    )


@dataclass(frozen=True, kw_only=True)
class RolloutTable(TraceTable):
    """What the agents do, and how many they are."""

    agents: int = setting(8, minimum=1, maximum=MAX_AGENTS, help="agents; more than the trace has are resampled")
    update_every: int | None = setting(
        None,
        minimum=1,
        maximum=1_000_000,
        none_means="never",
        help="change the weights after so many turns of all agents together; every system runs without that, with it, "
        "and with the store wiped each time",
    )


@dataclass(frozen=True, kw_only=True)
class OutputTable(Table):
    """Where the results go, beside the terminal."""

    TABLE = "output"
    json: Path | None = setting(None, metavar="OUT", none_means="not written", help="write all numbers to this file")
    html: Path | None = setting(None, metavar="OUT", none_means="not written", help="write a report to this file")


@dataclass(frozen=True, kw_only=True)
class BenchStoreTable(Table):
    """Where KV blocks are kept."""

    TABLE = "store"
    url: str | None = setting(
        None,
        flag="store",
        metavar="URL",
        none_means="a fresh temporary directory for every system, deleted afterwards",
        help="file:///DIR; every system gets a new directory in it, which stays",
    )
    block_tokens: int = setting(64, minimum=1, maximum=4096, help="tokens in a block, the unit of storing and reuse")


@dataclass(frozen=True, kw_only=True)
class ServingTable(Table):
    """How agents arrive, and when serving counts as good enough."""

    TABLE = "serving"
    aps: str | None = setting(
        None, metavar="X,...", none_means="give --find-capacity", help="agents that arrive per second, to try"
    )
    find_capacity: bool = setting(False, help="search the highest rate that keeps both limits")
    ttft_slo_s: float = setting(4.0, above=0, maximum=3600, help="limit on the mean time to first token")
    tpot_slo_s: float = setting(0.05, above=0, maximum=3600, help="limit on the mean time per token after the first")
    warm_up_s: float = setting(10.0, minimum=0, maximum=1e6, help="requests that arrive before are not counted")
    duration_s: float = setting(60.0, above=0, maximum=1e6, help="length of the measurement after the warm-up")
    min_aps: float = setting(0.05, above=0, maximum=1e6, help="where the search for the capacity begins")
    max_aps: float = setting(64.0, above=0, maximum=1e6, help="where the search for the capacity ends")
    tolerance: float = setting(0.1, above=0, maximum=1, help="the search ends when the bounds are this close")


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What both benchmarks need."""

    model: ModelConfig
    workload: TraceTable
    output: OutputTable = field(default_factory=OutputTable)
    store: BenchStoreTable = field(default_factory=BenchStoreTable)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    deadlines: DeadlineConfig = field(default_factory=DeadlineConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)


@dataclass(frozen=True, kw_only=True)
class RolloutSettings(BenchSettings):
    """Everything ``dualpath bench rollout`` needs."""

    workload: RolloutTable


@dataclass(frozen=True, kw_only=True)
class ServingSettings(BenchSettings):
    """Everything ``dualpath bench serving`` needs."""

    serving: ServingTable = field(default_factory=ServingTable)


def system_names(text: str) -> list[str]:
    """The systems of a list with commas; raises ConfigError for names that there are not, or twice."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in SYSTEMS:
            raise ConfigError(f"--systems: no system {name!r}; choose from {', '.join(SYSTEMS)}")
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"--systems: name every system once, not {text!r}")
    return names


def check_engine(settings: BenchSettings) -> None:
    """Raises ConfigError for what vLLM servers cannot be asked in a benchmark."""
    if settings.cluster.engine != "vllm":
        return
    if settings.vllm.join:
        raise ConfigError("--vllm-join: every system gets servers of its own")
    if "oracle" in system_names(settings.workload.systems):
        raise ConfigError("--systems: oracle moves no KV, and vLLM servers do")
    if isinstance(settings.workload, RolloutTable):
        if settings.workload.update_every is not None:
            raise ConfigError("--update-every: vLLM servers change their weights themselves")
        if settings.vllm.front_door != VllmConfig().front_door:
            raise ConfigError("--front-door: a rollout asks for tokens; dualpath bench serving asks by HTTP")


def rates(text: str) -> list[float]:
    """The arrival rates of a list with commas, lowest first."""
    try:
        found = sorted({float(part) for part in text.split(",") if part.strip()})
    except ValueError:
        raise ConfigError(f"--aps: must be numbers with commas between them, not {text!r}") from None
    if not found or not all(math.isfinite(rate) and 0 < rate <= 1e6 for rate in found):
        raise ConfigError(f"--aps: rates must be more than 0 and at most 1e6 agents per second, not {text!r}")
    return found


def serve_config(
    settings: BenchSettings, system: str, store_url: str, context_tokens: int, num_agents: int = 0
) -> ServeConfig:
    """One system's cluster. A context that nobody set is what the longest agent needs."""
    memory = settings.memory
    if memory.max_context_tokens is None:
        memory = replace(memory, max_context_tokens=context_tokens + 1)
    elif memory.max_context_tokens < context_tokens:
        raise ConfigError(
            f"--max-context-tokens {memory.max_context_tokens}: the longest agent needs {context_tokens}; see --scale"
        )
    queued = max(SchedulerConfig().max_queued_requests, num_agents)
    return ServeConfig(
        model=settings.model,
        store=StoreConfig(url=store_url, block_tokens=settings.store.block_tokens),
        cluster=replace(settings.cluster, system=system, allow_invalid_answers=system == "oracle"),
        memory=memory,
        scheduler=SchedulerConfig(max_queued_requests=min(queued, MAX_AGENTS), queue_timeout_s=LONGEST_WAIT_S),
        deadlines=settings.deadlines,
        vllm=settings.vllm,
    )


def as_json(settings: BenchSettings) -> dict[str, Any]:
    """Every setting by table and name, for the report; what nobody set and has no value is left out."""
    out: dict[str, Any] = {}
    for table in fields(settings):
        values = getattr(settings, table.name)
        if table.name == "vllm" and settings.cluster.engine != "vllm":
            continue
        found = {one.name: getattr(values, one.name) for one in fields(values) if one.name not in PER_SYSTEM}
        out[table.name] = {k: str(v) if isinstance(v, Path) else v for k, v in found.items() if v is not None}
    return out

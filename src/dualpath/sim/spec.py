"""What is simulated: cluster, model, workload, scheduler, as frozen tables; a TOML file has the same tables and names.

Every default has its reason here. Numbers of the paper are from arXiv 2602.21548, section 7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from dualpath.config.fields import Table, setting
from dualpath.config.load import load_config
from dualpath.core.errors import ConfigError
from dualpath.core.plan import Role
from dualpath.scheduler.policy.cost import DecodeCost
from dualpath.scheduler.policy.systems import SYSTEMS
from dualpath.sim.cost import ModelCost, PrefillCost

MAX_AGENTS = 1_000_000
SYSTEM_NAMES = tuple(SYSTEMS)
MAX_S = 1e6  # of any time: beyond, sums lose the microseconds


@dataclass(frozen=True, kw_only=True)
class ClusterSpec(Table):
    """Nodes, their NICs and their memory."""

    TABLE = "cluster"
    prefill_nodes: int = setting(1, minimum=1, maximum=10_000, help="P")
    decode_nodes: int = setting(1, minimum=1, maximum=10_000, help="D")
    engines_per_node: int = setting(8, minimum=1, maximum=64, help="GPUs of a node, one engine each")
    prefill_group_engines: int | None = setting(
        None, minimum=1, none_means="a node's", help="prefill engines that compute in lockstep and fetch together"
    )
    decode_group_engines: int = setting(1, minimum=1, help="decode engines whose steps wait for each other")
    storage_nics_per_node: int = setting(1, minimum=1, maximum=16, help="they share every read evenly")
    storage_nic_bytes_per_s: float = setting(50e9, minimum=1, maximum=1e15, help="of one storage NIC, each way")
    compute_nic_bytes_per_s: float = setting(50e9, minimum=1, maximum=1e15, help="of a GPU's NIC, each way")
    traffic_classes: bool = setting(
        True, help="collectives of model execution come before KV on compute NICs; false: both get equal shares"
    )
    dram_bytes_per_s: float = setting(
        500e9, minimum=1, maximum=1e15, help="memory bandwidth of a node, reads and writes together"
    )
    staging_bytes: int = setting(80_000_000_000, minimum=1, help="memory of a node for KV on its way")
    prefill_kv_bytes: int | None = setting(
        None,
        minimum=1,
        none_means="what a named model leaves free",
        help="device memory of a prefill engine for KV: whole requests, or two layers of a batch",
    )
    decode_kv_bytes: int | None = setting(
        None, minimum=1, none_means="what a named model leaves free", help="device memory of a decode engine for KV"
    )
    prefill_workspace_tokens: int | None = setting(
        None,
        minimum=1,
        none_means="what two layers of prefill_kv_bytes hold",
        help="tokens of one forward of a prefill engine that streams layers, histories included",
    )
    block_header_bytes: int = setting(0, minimum=0, help="what every stored block has in front of its KV")
    store_bytes: int | None = setting(
        None,
        minimum=1,
        none_means="room for all",
        help="stored blocks of the whole cluster, at most; those of former weights go first, then those used least"
        " recently",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for role, nodes, size in (
            ("prefill", self.prefill_nodes, self.prefill_group),
            ("decode", self.decode_nodes, self.decode_group_engines),
        ):
            if nodes * self.engines_per_node % size or (size < self.engines_per_node and self.engines_per_node % size):
                raise ConfigError(
                    f"[cluster] {role}_group_engines: {nodes} nodes of {self.engines_per_node} engines"
                    f" cannot be divided into groups of {size}"
                )

    @property
    def prefill_group(self) -> int:
        return self.prefill_group_engines or self.engines_per_node

    def kv_bytes(self, role: Role) -> int:
        """Of an engine. Raises ConfigError where nobody has said how much."""
        name = f"{role.value}_kv_bytes"
        found: int | None = getattr(self, name)
        if found is None:
            raise ConfigError(f"[cluster] {name}: is required where the model has no name")
        return found


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Table):
    """A model on a GPU: a catalogue's name, or its costs. See ``sim.cost`` for what each cost means."""

    TABLE = "model"
    name: str | None = setting(None, none_means="the costs below", help="a model of the catalogue, or a config.json")
    gpu: str | None = setting(None, none_means="the costs below", help="a GPU of the catalogue")
    kv_dtype: str | None = setting(None, none_means="the catalogue's", help="of a named model's KV")
    efficiency: float | None = setting(
        None,
        above=0,
        maximum=1,
        none_means="the best published kernels'",
        help="of a named model on its GPU: share of peak",
    )
    kv_bytes_per_token: int | None = setting(None, minimum=1, help="all layers together")
    num_layers: int = setting(1, minimum=1, help="layers: what streams through a prefill engine is two of them")
    prefill_base_s: float = setting(0.0, minimum=0, maximum=MAX_S, help="of every forward")
    prefill_token_s: float = setting(0.0, minimum=0, maximum=MAX_S, help="for each new token, on its own GPU")
    prefill_pair_s: float = setting(0.0, minimum=0, maximum=MAX_S, help="for each query-key pair, keys capped at top_k")
    prefill_index_pair_s: float = setting(0.0, minimum=0, maximum=MAX_S, help="for each query-key pair, not capped")
    top_k: int | None = setting(None, minimum=1, none_means="all", help="keys a query attends to")
    prefill_group_token_s: float = setting(
        0.0, minimum=0, maximum=MAX_S, help="GPU-seconds for each new token, spread over the group"
    )
    decode_base_s: float = setting(0.0, minimum=0, maximum=MAX_S, help="of every step")
    decode_per_request_s: float = setting(0.0, minimum=0, maximum=MAX_S, help="for each request in an engine's batch")
    prefill_collective_bytes: float = setting(
        0.0, minimum=0, maximum=1e12, help="that a new token's layers exchange through its GPU's compute NIC, each way"
    )
    decode_collective_bytes: float = setting(
        0.0, minimum=0, maximum=1e12, help="the same for each generated token; what stays inside a node does not count"
    )
    decode_per_context_token_s: float = setting(
        0.0, minimum=0, maximum=MAX_S, help="for each context token of an engine's batch"
    )

    def cost(self) -> ModelCost:
        """The costs that are given; ``model_choice`` knows names. Raises ConfigError where they are not enough."""
        if self.kv_bytes_per_token is None:
            raise ConfigError("[model] kv_bytes_per_token: is required where no name is given")
        decode = DecodeCost(self.decode_base_s, self.decode_per_request_s, self.decode_per_context_token_s)
        prefill = PrefillCost(
            self.prefill_base_s,
            self.prefill_token_s,
            self.prefill_pair_s,
            self.prefill_index_pair_s,
            self.top_k,
            self.prefill_group_token_s,
        )
        if not (decode.step_s(1, 1) > 0 and prefill.forward_s([[(1, 1)]]) > 0):
            raise ConfigError("[model] prefill_*_s, decode_*_s: a forward and a decode step must take some time")
        return self.with_collectives(ModelCost(prefill, decode, self.kv_bytes_per_token, self.num_layers))

    def with_collectives(self, cost: ModelCost) -> ModelCost:
        """The same model with what its layers exchange between nodes."""
        return replace(
            cost,
            prefill_collective_bytes=self.prefill_collective_bytes,
            decode_collective_bytes=self.decode_collective_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class WorkloadSpec(Table):
    """What the agents do and when they come."""

    TABLE = "workload"
    trace: str = setting("synth:64K", help="trajectories: a file, a directory, or synth:32K, 48K, 64K")
    agents: int = setting(
        500, minimum=1, maximum=MAX_AGENTS, help="all starting at once; more than the trace has are resampled"
    )
    aps: float | None = setting(
        None, above=0, maximum=1e6, none_means="all at once", help="agents that arrive per second, instead"
    )
    rounds: int | None = setting(None, minimum=1, none_means="all", help="turns of each agent, at most")
    scale: float = setting(1.0, above=0, maximum=1000, help="factor on all lengths")
    append_scale: float = setting(1.0, above=0, maximum=1000, help="factor on what each turn appends")
    generate_scale: float = setting(1.0, above=0, maximum=1000, help="factor on what each turn generates")
    think: float = setting(0.0, minimum=0, maximum=1000, help="factor on the trace's think times")
    think_s: float = setting(
        0.0, minimum=0, maximum=MAX_S, help="tool time before every turn but the first, beside the trace's"
    )
    seed: int = setting(0, minimum=0, maximum=2**31 - 1, help="of the trace, of resampling and of arrivals")
    warm_up_s: float = setting(
        900.0, minimum=0, maximum=1e6, help="with aps: requests that arrive before are not counted"
    )
    duration_s: float = setting(600.0, above=0, maximum=1e6, help="with aps: length of the measurement after that")
    ttft_slo_s: float = setting(4.0, above=0, maximum=3600, help="limit on the mean time to first token")
    tpot_slo_s: float = setting(0.05, above=0, maximum=3600, help="limit on the mean time per token after the first")


@dataclass(frozen=True, kw_only=True)
class SchedulerSpec(Table):
    """The scheduler's constants, and what else takes time beside links and GPUs."""

    TABLE = "scheduler"
    systems: str = setting("basic,shorter", help=f"what to compare: {', '.join(SYSTEM_NAMES)}")
    block_tokens: int = setting(64, minimum=1, maximum=4096, help="tokens in a block, the unit of storing and reuse")
    quota_s: float = setting(0.3, above=0, maximum=MAX_S, help="attention time of one forward, at most (section 6)")
    alpha_s: float = setting(3.0, above=0, maximum=MAX_S, help="alpha is what a node reads in this time (section 6)")
    beta_s: float = setting(
        5.0, above=0, maximum=MAX_S, help="beta is what an engine computes in this time (section 6)"
    )
    alpha_tokens: int | None = setting(None, minimum=0, none_means="by alpha_s", help="alpha itself")
    beta_tokens: int | None = setting(None, minimum=1, none_means="by beta_s", help="beta itself")
    prefill_load: str = setting(
        "prompt",
        choices=("prompt", "new"),
        help="what a request counts for in a prefill engine's tok_e: its prompt, as in the live system, or what of it"
        " must be computed",
    )
    fetch_interval_s: float = setting(
        0.1,
        minimum=0,
        maximum=MAX_S,
        help="each group leader asks for work this often; 0: all engines are looked at on every change",
    )
    expected_output_tokens: int = setting(
        256, minimum=0, help="device memory set aside for a request's output, at most"
    )
    memory: str = setting(
        "reserved",
        choices=("reserved", "on_demand"),
        help="reserved: as the live system, decode staging memory for the whole prompt before its read, decode device"
        " memory from the assignment on; on_demand: as the paper describes, each when KV comes to be there, a layer"
        " at a time",
    )
    writes_hold_staging: bool = setting(
        False,
        help="true, as the live system: decode staging memory stays in use while it is written from; matters where"
        " writes are slow and memory is short, and takes an event for every block",
    )
    max_batch_tokens: int = setting(8192, minimum=1, help="new tokens of an engine in one forward, at most")
    admission_s: float = setting(0.0, minimum=0, maximum=MAX_S, help="from a client's request to the scheduler's queue")
    handover_s: float = setting(
        0.0, minimum=0, maximum=MAX_S, help="from prefill's last layer to decode, beside the transfers"
    )


@dataclass(frozen=True, kw_only=True)
class FailureSpec(Table):
    """Engines and nodes that fail."""

    TABLE = "failures"
    events: tuple[str, ...] = setting(
        (),
        help='"TIME_S NAME" or "TIME_S NAME BACK_AFTER_S"; names are those of the results, e.g. "120 decode-node0 60"',
    )


@dataclass(frozen=True, kw_only=True)
class UpdateSpec(Table):
    """Weights that change while agents run, as a trainer changes them."""

    TABLE = "updates"
    every: int | None = setting(
        None, minimum=1, none_means="never", help="turns of all agents together between two changes"
    )
    weights: int | None = setting(
        None, minimum=2, none_means="always new ones", help="how many there are; then the first come back"
    )
    load_s: float = setting(
        0.0, minimum=0, maximum=MAX_S, help="until weights that are due are loaded; requests run meanwhile"
    )
    wipe_s: float = setting(
        0.0, minimum=0, maximum=MAX_S, help="where the store is wiped: nothing runs for so long, and for load_s"
    )


@dataclass(frozen=True, kw_only=True)
class OutputSpec(Table):
    """What is recorded."""

    TABLE = "output"
    window_s: float = setting(1.0, minimum=0.001, maximum=MAX_S, help="window of the traffic series")


@dataclass(frozen=True, kw_only=True)
class SimSpec:
    """Everything one simulation needs but the system."""

    cluster: ClusterSpec = field(default_factory=ClusterSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    workload: WorkloadSpec = field(default_factory=WorkloadSpec)
    scheduler: SchedulerSpec = field(default_factory=SchedulerSpec)
    failures: FailureSpec = field(default_factory=FailureSpec)
    updates: UpdateSpec = field(default_factory=UpdateSpec)
    output: OutputSpec = field(default_factory=OutputSpec)

    @property
    def systems(self) -> list[str]:
        """Raises ConfigError for names that there are not, or twice."""
        names = [name.strip() for name in self.scheduler.systems.split(",") if name.strip()]
        for name in names:
            if name not in SYSTEMS:
                raise ConfigError(f"[scheduler] systems: no system {name!r}; choose from {', '.join(SYSTEMS)}")
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"[scheduler] systems: name every system once, not {self.scheduler.systems!r}")
        return names


def load_spec(file: Path) -> SimSpec:
    """Raises ConfigError: "file: [table] key: reason"."""
    spec = load_config(SimSpec, file)
    _ = spec.systems
    return spec


def require_possible(spec: SimSpec, cost: ModelCost, longest_tokens: int) -> None:
    """Raises ConfigError for a cluster that cannot hold the longest request, naming what is too small."""
    needed = math.ceil(longest_tokens / spec.scheduler.block_tokens) * spec.scheduler.block_tokens
    needed_bytes = needed * cost.kv_bytes_per_token
    layers_bytes = needed_bytes * min(2, cost.num_layers) // cost.num_layers
    whole = any(not SYSTEMS[name].streams_layers for name in spec.systems)
    for name, have, need in (
        ("staging_bytes", spec.cluster.staging_bytes, needed_bytes),
        ("decode_kv_bytes", spec.cluster.kv_bytes(Role.DECODE), needed_bytes),
        ("prefill_kv_bytes", spec.cluster.kv_bytes(Role.PREFILL), needed_bytes if whole else layers_bytes),
    ):
        if have < need:
            raise ConfigError(
                f"[cluster] {name}: impossible cluster: the longest request has {longest_tokens} tokens"
                f" and needs {need} bytes, not {have}"
            )
    workspace = spec.cluster.prefill_workspace_tokens
    if workspace is not None and workspace < needed:
        raise ConfigError(
            "[cluster] prefill_workspace_tokens: impossible cluster:"
            f" the longest request needs {needed}, not {workspace}"
        )

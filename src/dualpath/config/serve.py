"""Every setting of ``dualpath serve``: what it is, in which unit, within which range, and what it is when nobody says.

Sizes take a number of bytes or text such as "512MiB" or "8GB". None means "worked out at start"; each help says how.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from dualpath.config.fields import Table, setting
from dualpath.config.gateway import GatewayConfig
from dualpath.config.nodes import NodeConfig, RayConfig, bytes_per_s, check_nodes
from dualpath.config.vllm import VllmConfig
from dualpath.core.errors import ConfigError

GIB = 1024**3
PATHS = ("prefill", "decode", "shorter", "split", "round_robin")
DTYPES = ("auto", "float32", "bfloat16", "float16")
SYSTEMS = ("basic", "layerwise", "round_robin", "shorter", "split", "oracle")
ENGINES = ("builtin", "vllm")
TRANSPORTS = ("nixl", "local")
COPIES = ("memcpy", "cuda", "nic")
VERIFY = ("auto", "all", "storage")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Table):
    """Which model is served, and on what."""

    TABLE = "model"
    dir: Path = setting(flag="model", metavar="DIR", help="local directory of a Hugging Face model, weights included")
    dtype: str = setting("auto", choices=DTYPES, help="number format of weights and KV; auto is the checkpoint's own")
    device: str = setting(
        "auto",
        metavar="DEVICE",
        pattern=r"auto|cpu|cuda(:[0-9]+)?",
        pattern_means="auto, cpu, cuda or cuda:N",
        help="cpu, cuda (engines share out all devices) or cuda:N; auto is cuda where there is a device, else cpu",
    )
    cuda_graphs: bool = setting(
        False,
        help="capture decode steps in CUDA graphs, by batch size, for llama, mistral, qwen2 and qwen3: less host time "
        "a step, some seconds more at the start, and device memory for them",
    )
    served_name: str | None = setting(
        None, flag="served-model-name", none_means="the directory's name", help="the model's name in the API"
    )
    profile: Path | None = setting(
        None,
        metavar="FILE",
        none_means="dualpath-profile.json beside the model, if there",
        help="what dualpath model profile measured; read where it was measured on this device, else defaults hold",
    )


@dataclass(frozen=True, kw_only=True)
class StoreConfig(Table):
    """Where KV blocks are kept between requests."""

    TABLE = "store"
    url: str = setting(
        flag="store",
        metavar="URL",
        help="file:///DIR on any mounted file system, s3://BUCKET/PREFIX, or memory:// to forget it at the end",
    )
    capacity_bytes: int | None = setting(
        None,
        minimum=1,
        none_means="capacity-fraction for files, else no limit",
        help="least recently used blocks are deleted beyond this size",
    )
    capacity_fraction: float = setting(
        0.8,
        above=0,
        maximum=1,
        help="without capacity-bytes: how much of a file system our blocks may fill, as a share of its size less what "
        "others use at the time",
    )
    block_tokens: int = setting(64, minimum=1, maximum=4096, help="tokens in a block, the unit of storing and reuse")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(Table):
    """How many nodes there are, and how blocks get to them."""

    TABLE = "cluster"
    engine: str = setting(
        "builtin",
        choices=ENGINES,
        help="what computes: engines of ours, or vLLM servers, which are started or joined (docs/vllm.md)",
    )
    prefill: int = setting(1, minimum=1, maximum=1024, help="prefill nodes")
    decode: int = setting(1, minimum=1, maximum=1024, help="decode nodes")
    engines_per_node: int = setting(1, minimum=1, maximum=64, help="engines that share a node and its storage NIC")
    path: str = setting(
        "split",
        choices=PATHS,
        help="whose storage NIC reads a request's stored blocks: always the prefill node's, always the decode node's, "
        "the one with the shorter queue, both so that they end together, or each in turn",
    )
    system: str | None = setting(
        None,
        choices=SYSTEMS,
        none_means="full scheduling with --path",
        help="a system to compare with, instead of --path: the paper's baseline basic, its ablation layerwise and "
        "round_robin, its own shorter, ours split; oracle moves no KV, so it answers nonsense as fast as can be",
    )
    allow_invalid_answers: bool = setting(
        False, help="serve although --system oracle makes every answer invalid; for benchmarks only"
    )
    storage_nic_mbps: float | None = setting(
        None,
        above=0,
        maximum=1e7,
        none_means="unlimited",
        help="emulate storage NICs of this many Mbit/s per node, each direction; for trying things out on one machine",
    )
    threads_per_engine: int | None = setting(
        None,
        minimum=1,
        maximum=1024,
        none_means="cores / engines, at least 1",
        help="CPU threads of one engine's model",
    )
    transport: str = setting(
        "nixl",
        choices=TRANSPORTS,
        help="what moves KV between engines and to storage: NIXL, or, all engines being in this process, plain copies "
        "(local: file and memory stores only)",
    )
    tensor_parallel: int = setting(
        1,
        minimum=1,
        maximum=64,
        help="processes that run each prefill engine's model together, every one with a share of weights and heads; "
        "one prefill engine per node then, on CUDA a device for each process; of vLLM: ranks of every server",
    )
    tensor_parallel_listen: str | None = setting(
        None,
        metavar="HOST:PORT",
        pattern=r".+:[0-9]{1,5}",
        pattern_means="HOST:PORT",
        none_means="the node starts the others itself, on its own host",
        help="address where a prefill node waits for the other processes, started on any hosts with dualpath model "
        "follow; all know the secret in DUALPATH_SECRET or DUALPATH_SECRET_FILE",
    )


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Table):
    """How much memory each engine takes; all of it is allocated once, at start."""

    TABLE = "memory"
    max_context_tokens: int | None = setting(
        None,
        minimum=2,
        none_means="the model's limit, at most 32768",
        help="longest prompt plus answer of one request, in tokens",
    )
    prefill_staging_bytes: int = setting(
        GIB,
        minimum=1,
        help="most host memory for a prefill engine's buffer, where blocks from storage wait for their layer's turn; "
        "no more than four longest contexts are taken",
    )
    decode_staging_bytes: int = setting(
        GIB,
        minimum=1,
        help="most host memory for a decode engine's buffer, where whole prompts wait for device memory; "
        "no more than four longest contexts are taken",
    )
    prefill_batch_tokens: int = setting(
        8192, minimum=1, help="most new tokens in one forward pass of a prefill engine; longer prompts go in pieces"
    )
    prefill_kv_tokens: int | None = setting(
        None,
        minimum=2,
        none_means="one longest context",
        help="tokens whose KV fits a prefill engine's device at once, histories included: two layers of each where "
        "layers are streamed (and two spare ones), all layers of each with --system basic",
    )
    decode_kv_tokens: int | None = setting(
        None,
        minimum=2,
        none_means="8 longest contexts, at most 2 GiB, on a CPU; device-memory-fraction on CUDA",
        help="tokens whose KV a decode engine's device holds, over all running requests",
    )
    device_memory_fraction: float = setting(
        0.9, above=0, maximum=1, help="share of a CUDA device's memory that one engine may use, weights included"
    )
    copies: str | None = setting(
        None,
        choices=COPIES,
        none_means="cuda on CUDA devices, else memcpy",
        help="what copies KV between host and device: the CPU, CUDA, or the compute NIC by loopback RDMA, where its "
        "traffic classes order copies too",
    )
    verify: str = setting(
        "auto",
        choices=VERIFY,
        help="where KV is compared with digests made with it: wherever it has been moved or has waited before it is "
        "used or stored (all), or after storage reads alone (storage); auto is all where engines compute on CPUs, "
        "storage on CUDA, where digests take copies to the host; the same on every node",
    )


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig(Table):
    """Which request runs where, and how many may wait."""

    TABLE = "scheduler"
    max_queued_requests: int = setting(
        1024, minimum=1, maximum=1_000_000, help="requests that may wait for an engine; more get HTTP 429"
    )
    queue_timeout_s: float = setting(
        300.0, above=0, maximum=604_800, help="longest wait for an engine; then the request gets HTTP 429"
    )
    prefill_quota_ms: float = setting(
        300.0,
        above=0,
        maximum=3.6e6,
        help="most predicted attention time of one prefill forward; longer ones go in pieces; needs a profile",
    )
    max_retries: int = setting(
        3, minimum=0, maximum=100, help="times engines may fail a request that gets no token in between"
    )
    retry_budget_s: float = setting(
        60.0,
        above=0,
        maximum=86_400,
        help="how long a request that comes no further is tried again while engines or paths between them are lost",
    )


@dataclass(frozen=True, kw_only=True)
class DeadlineConfig(Table):
    """How long anything may take before it counts as failed, in seconds."""

    TABLE = "deadlines"
    storage_read_s: float = setting(30.0, above=0, maximum=3600, help="reading or writing one block on storage")
    transfer_s: float = setting(30.0, above=0, maximum=3600, help="moving one layer's blocks between engines")
    slot_s: float = setting(120.0, above=0, maximum=3600, help="waiting for room in a staging buffer")


@dataclass(frozen=True, kw_only=True)
class ObserveConfig(Table):
    """What is written down about a run."""

    TABLE = "observe"
    trace_out: Path | None = setting(
        None, metavar="FILE", none_means="no trace", help="write a Chrome trace of every engine to this file at exit"
    )
    otlp_traces_endpoint: str | None = setting(
        None,
        metavar="URL",
        pattern=r"https?://.+",
        pattern_means="an http:// or https:// URL",
        none_means="no traces",
        help="where spans of requests go by OTLP over HTTP, e.g. http://collector:4318/v1/traces; needs dualpath[otel]",
    )
    trace_fraction: float = setting(
        1.0, minimum=0, maximum=1, help="share of requests that are traced, of those whose client does not say"
    )
    log_level: str = setting("info", choices=LOG_LEVELS, help="least severe messages that go to stderr")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Everything ``dualpath serve`` needs; one field for each table of a ``--config`` file."""

    model: ModelConfig
    store: StoreConfig
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    deadlines: DeadlineConfig = field(default_factory=DeadlineConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    FOREIGN: ClassVar[tuple[str, ...]] = ("fabric",)  # tables of the same file that belong to other verbs
    nodes: tuple[NodeConfig, ...] = ()  # none: all engines in one process, as many as [cluster] says

    def __post_init__(self) -> None:
        if self.cluster.transport == "local":
            self._check_local()
        if self.ray.gateways > 1:
            self._check_gateways()
        if not self.nodes:
            return
        check_nodes(self.nodes)
        if (self.cluster.prefill, self.cluster.decode, self.cluster.engines_per_node) != (1, 1, 1):
            raise ConfigError("[cluster] prefill, decode, engines_per_node: leave them out where there are [[nodes]]")

    def emulated_nic_mbps(self, node: NodeConfig) -> float | None:
        """What the node's storage traffic is held to, each direction. None: to nothing.

        ``[cluster] storage_nic_mbps`` emulates a NIC for every node. A node's own says what its NIC can do, and
        emulates it with ``pace_storage`` only.
        """
        return node.storage_nic_mbps if node.pace_storage else self.cluster.storage_nic_mbps

    def emulated_nic_bytes_per_s(self, node: NodeConfig) -> float | None:
        return bytes_per_s(self.emulated_nic_mbps(node))

    def storage_nic_bytes_per_s(self, node: NodeConfig) -> float | None:
        """The rate of the node's storage NIC as far as it is known, real or emulated."""
        rates = bytes_per_s(node.storage_nic_mbps), self.emulated_nic_bytes_per_s(node)
        return min((rate for rate in rates if rate), default=None)

    def _check_gateways(self) -> None:
        count, port = self.ray.gateways, self.gateway.port
        if not self.nodes:
            raise ConfigError(f"[ray] gateways: {count} need [[nodes]]; without them the one process has its own")
        if not 0 < port <= 65536 - count:
            raise ConfigError(f"[gateway] port: {port}; {count} gateways on one host need a number to count from")

    def _check_local(self) -> None:
        if self.nodes:
            raise ConfigError("[cluster] transport: local moves KV within one process, and [[nodes]] are several")
        if self.memory.copies == "nic":
            raise ConfigError("[cluster] transport: local has no compute NIC; leave out [memory] copies = nic")
        if self.store.url.startswith("s3:") or "engine=3fs" in self.store.url:
            raise ConfigError(f"[cluster] transport: local reads files and memory, {self.store.url} needs nixl")

"""Which vLLM servers there are, where they listen, and what their connectors are told."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from dualpath.cluster.free_ports import free_ports
from dualpath.cluster.sizes import Sizes, derive_sizes
from dualpath.config import ServeConfig, bytes_per_s
from dualpath.config.vllm import LINE_PORT_OFFSET
from dualpath.core.errors import ConfigError
from dualpath.core.geometry import KvGeometry
from dualpath.core.plan import Role
from dualpath.scheduler.policy.systems import system_policy
from dualpath.vllm.settings import ConnectorSettings

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Host:
    """On what a server is started: here, unless something else is said."""

    command: tuple[str, ...] = ()  # words in front of a command that has it run there
    environment: Mapping[str, str] = field(default_factory=dict)  # of every process there; stronger than ours


HERE = Host()


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """Where one server is: its API and its control line."""

    name: str  # of its engine and of its node
    role: Role
    url: str
    line_host: str
    line_port: int
    on: Host = HERE

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or LOOPBACK

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 80


def check(config: ServeConfig) -> None:
    """Raises ConfigError for what vLLM servers cannot be asked."""
    if config.nodes:
        _check_nodes(config)
    if config.cluster.engines_per_node != 1:
        raise ConfigError("--engines-per-node: a vLLM server is a node of its own, so it must be 1")
    _check_ranks(config)
    if system_policy(config.cluster.system, config.cluster.path).skips_io:
        raise ConfigError(f"--system {config.cluster.system}: vLLM servers move KV")
    if config.store.url.startswith("memory:"):
        raise ConfigError(
            f"--store {config.store.url} is one process's memory; vLLM servers are processes of their own"
        )


def _check_ranks(config: ServeConfig) -> None:
    """How many a server has must be known for devices, memory and threads."""
    if config.cluster.tensor_parallel_listen is not None:
        raise ConfigError("[cluster] tensor_parallel_listen: a vLLM server starts all its ranks itself, on one host")
    for text in (*config.vllm.args, *(text for node in config.nodes for text in node.vllm_args)):
        if text.partition("=")[0].replace("_", "-") in ("--tensor-parallel-size", "-tp"):
            raise ConfigError(f"{text} of a vLLM server: use --tensor-parallel, [cluster] tensor_parallel in a file")


def _check_nodes(config: ServeConfig) -> None:
    """Each gets a server that is started for it."""
    if config.vllm.join:
        raise ConfigError("[[nodes]] with --vllm-join: a server is started for each node; leave one of the two out")
    for node in config.nodes:
        if node.engines != 1:
            raise ConfigError(f"[nodes] engines: {node.name} has {node.engines}; a vLLM server is a node of its own")


def joined_places(config: ServeConfig) -> tuple[ServerPlace, ...]:
    """Those of ``--vllm-join``."""
    counts = dict.fromkeys(Role, 0)
    places = []
    for text in config.vllm.join:
        role_name, _, rest = text.partition("=")
        url, _, line = rest.partition(",")
        role, parts = Role(role_name), urlsplit(url)
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            line_host, _, line_port = line.rpartition(":") if line else (parts.hostname or "", "", "")
            number = int(line_port) if line_port else port + LINE_PORT_OFFSET
        except ValueError as error:
            raise ConfigError(f"--vllm-join: {text}: {error}") from None
        places.append(ServerPlace(f"{role.value}-{counts[role]}", role, url, line_host, number))
        counts[role] += 1
    return tuple(places)


def new_places(config: ServeConfig) -> tuple[ServerPlace, ...]:
    """Of servers that are to be started on this machine, on ports that are free now."""
    counts = ((Role.PREFILL, config.cluster.prefill), (Role.DECODE, config.cluster.decode))
    return free_places([(f"{role.value}-{number}", role) for role, count in counts for number in range(count)])


def free_places(servers: Sequence[tuple[str, Role]], host: str = LOOPBACK) -> tuple[ServerPlace, ...]:
    """For these names and roles, on ports of this machine's ``host`` that are free now."""
    ports = iter(free_ports(2 * len(servers), host))
    return tuple(ServerPlace(name, role, f"http://{host}:{next(ports)}", host, next(ports)) for name, role in servers)


def connector_settings(
    config: ServeConfig, place: ServerPlace, sizes: Sizes, *, lease_s: float | None
) -> ConnectorSettings:
    is_prefill = place.role is Role.PREFILL
    return ConnectorSettings(
        role="prefill" if is_prefill else "decode",
        engine_id=place.name,
        node_id=place.name,
        host=place.line_host,
        port=place.line_port,
        store_url=_absolute(config.store.url),
        num_slots=sizes.prefill_slots if is_prefill else sizes.decode_slots,
        nic_bytes_per_s=bytes_per_s(config.cluster.storage_nic_mbps),
        verify=config.memory.verify,  # type: ignore[arg-type]  # one of the same choices
        slot_s=config.deadlines.slot_s,
        storage_s=config.deadlines.storage_read_s,
        transfer_s=config.deadlines.transfer_s,
        lease_s=lease_s,
    )


def _absolute(url: str) -> str:
    """The servers' working directory is another."""
    scheme, separator, rest = url.partition("://")
    return f"file://{Path(rest).absolute()}" if separator and scheme == "file" else url


def sizes_of(config: ServeConfig) -> tuple[KvGeometry, Sizes]:
    """From the model's config.json alone: vLLM's own memory is vLLM's. Raises ConfigError."""
    fields = _read_config(config.model.dir)
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = str(fields.get("dtype") or fields.get("torch_dtype") or "bfloat16")
    try:
        layers, context = (int(str(fields[name])) for name in ("num_hidden_layers", "max_position_embeddings"))
        row_bytes = _row_elements(fields) * _BYTES.get(dtype, 4)
        geometry = KvGeometry(layers, config.store.block_tokens, row_bytes)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{config.model.dir}/config.json: cannot tell the size of its KV: {error!r}") from None
    memory = config.memory
    copies = config.cluster.tensor_parallel * rank_bytes_per_token(config, geometry) // geometry.bytes_per_token
    if copies > 1:  # ranks that have the same KV have a buffer of it each
        prefill, decode = memory.prefill_staging_bytes // copies, memory.decode_staging_bytes // copies
        memory = replace(memory, prefill_staging_bytes=prefill, decode_staging_bytes=decode)
    return geometry, derive_sizes(memory, geometry, context)


def num_workers(config: ServeConfig, num_engines: int) -> int:
    """Processes that compute for so many engines: vLLM servers have one for each rank."""
    return num_engines * (config.cluster.tensor_parallel if config.cluster.engine == "vllm" else 1)


def rank_bytes_per_token(config: ServeConfig, geometry: KvGeometry) -> int:
    """What one rank of a server keeps of a token's KV: its share of the heads, one at least, or a latent whole."""
    fields = _read_config(config.model.dir)
    if fields.get("kv_lora_rank"):
        return geometry.bytes_per_token
    heads = int(str(fields.get("num_key_value_heads") or fields["num_attention_heads"]))
    return geometry.bytes_per_token * max(1, heads // config.cluster.tensor_parallel) // heads


def _row_elements(fields: dict[str, object]) -> int:
    """Of one token in one layer."""

    def count(name: str) -> int:
        return int(str(fields[name]))

    if fields.get("kv_lora_rank"):
        return count("kv_lora_rank") + count("qk_rope_head_dim")
    heads = count("num_attention_heads")
    head_dim = count("head_dim") if fields.get("head_dim") else math.ceil(count("hidden_size") / heads)
    kv_heads = count("num_key_value_heads") if fields.get("num_key_value_heads") else heads
    return 2 * kv_heads * head_dim


def _read_config(directory: Path) -> dict[str, object]:
    path = directory / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} must hold an object")
    text = fields.get("text_config")
    return {**fields, **text} if isinstance(text, dict) else fields

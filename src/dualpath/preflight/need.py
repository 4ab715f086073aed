"""How much of a host's memory a node's engines will take, by the arithmetic of ``cluster.sizes``."""

from __future__ import annotations

from dualpath.cluster.sizes import Sizes, derive_sizes
from dualpath.config import NodeConfig, ServeConfig
from dualpath.core.geometry import KvGeometry
from dualpath.preflight.model_files import weight_bytes
from dualpath.preflight.model_kind import ModelKind
from dualpath.store.header import object_bytes


def num_engines(config: ServeConfig, node: NodeConfig | None) -> int:
    cluster = config.cluster
    return node.engines if node is not None else (cluster.prefill + cluster.decode) * cluster.engines_per_node


def staging_bytes(config: ServeConfig, node: NodeConfig | None, kind: ModelKind) -> int:
    """Of all engines of the node. Raises ConfigError where the settings do not fit each other."""
    return slots_bytes(config, node, kind.namespace.geometry, _sizes(config, kind))


def slots_bytes(config: ServeConfig, node: NodeConfig | None, geometry: KvGeometry, sizes: Sizes) -> int:
    """Of all staging slots of the node's engines."""
    prefill, decode = _engines(config, node)
    return (prefill * sizes.prefill_slots + decode * sizes.decode_slots) * object_bytes(geometry)


def host_bytes(config: ServeConfig, node: NodeConfig | None, kind: ModelKind) -> int:
    """Staging buffers; on a CPU the weights, which engines share, and the KV of "devices" too."""
    num_bytes = staging_bytes(config, node, kind)
    if kind.namespace.numerics != "cpu":
        return num_bytes
    sizes, geometry = _sizes(config, kind), kind.namespace.geometry
    prefill, decode = _engines(config, node)
    workspaces = 4 * sizes.workspace_tokens * geometry.bytes_per_token_layer  # two, and two spare ones
    pool = sizes.decode_kv_tokens * geometry.bytes_per_token
    return num_bytes + weight_bytes(config.model.dir) + prefill * workspaces + decode * pool


def _sizes(config: ServeConfig, kind: ModelKind) -> Sizes:
    return derive_sizes(config.memory, kind.namespace.geometry, kind.max_context_tokens)


def _engines(config: ServeConfig, node: NodeConfig | None) -> tuple[int, int]:
    """Prefill, decode."""
    if node is None:
        per_node = config.cluster.engines_per_node
        return config.cluster.prefill * per_node, config.cluster.decode * per_node
    return (node.engines, 0) if node.role == "prefill" else (0, node.engines)

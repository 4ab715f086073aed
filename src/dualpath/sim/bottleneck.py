"""The bottleneck-free range: for which P/D the storage NICs saturate before any compute NIC or DRAM does.

Paper (arXiv 2602.21548) section 4.2. P prefill and D decode nodes of one shape read at the full rate of all their
storage NICs; the KV goes evenly over all pairs of a prefill and a decode engine, whichever side read it. New tokens' KV
and the model's own collectives are not in it: hits are more than 95 % of all tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from dualpath.core.errors import ConfigError

ROUNDING = 1e-9  # utilisations this little above 1 are 1: both ends of the range belong to it


class Resource(Enum):
    """What can saturate. A NIC *reads* memory to send and *writes* memory to receive; loopback copies do both."""

    STORAGE_NIC = "storage NIC"
    PREFILL_CNIC_READ = "prefill compute NIC, read"
    PREFILL_CNIC_WRITE = "prefill compute NIC, write"
    DECODE_CNIC_READ = "decode compute NIC, read"
    DECODE_CNIC_WRITE = "decode compute NIC, write"
    PREFILL_DRAM = "prefill DRAM"
    DECODE_DRAM = "decode DRAM"


@dataclass(frozen=True, slots=True)
class NodeShape:
    """g GPUs with a compute NIC of bandwidth B each, storage NICs, and DRAM of bandwidth M; the paper's by default."""

    num_gpus: int = 8
    cnic_bytes_per_s: float = 50e9
    num_snics: int = 1
    snic_bytes_per_s: float = 50e9
    dram_bytes_per_s: float = 500e9

    def __post_init__(self) -> None:
        for name in ("num_gpus", "cnic_bytes_per_s", "num_snics", "snic_bytes_per_s", "dram_bytes_per_s"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} must be a positive number, not {value}")

    @property
    def storage_bytes_per_s(self) -> float:
        """The paper's B x s."""
        return self.num_snics * self.snic_bytes_per_s

    @property
    def storage_share(self) -> float:
        """The paper's s: storage bandwidth in units of one compute NIC's; not a whole number when speeds differ."""
        return self.storage_bytes_per_s / self.cnic_bytes_per_s


@dataclass(frozen=True, slots=True)
class PdRange:
    """P/D from ``low`` to ``high``, and what saturates beyond each end. Empty when low > high."""

    low: float
    high: float
    low_limit: Resource
    high_limit: Resource

    def __contains__(self, pd_ratio: float) -> bool:
        return self.low <= pd_ratio <= self.high


def pair_traffic(num_prefill: int, num_decode: int, node: NodeShape) -> tuple[float, float]:
    """(T_p, T_c): bytes/s between one prefill and one decode engine that came by the PE path and by the DE path.

    T_p = B s / (D g^2), T_c = B s / (P g^2).
    """
    _check_nodes(num_prefill, num_decode)
    per_node_pair = node.storage_bytes_per_s / node.num_gpus**2
    return per_node_pair / num_decode, per_node_pair / num_prefill


def loads(num_prefill: int, num_decode: int, node: NodeShape) -> dict[Resource, float]:
    """Bytes/s of each resource with all storage NICs saturated: of one NIC, or of one node's DRAM."""
    by_pe, by_de = pair_traffic(num_prefill, num_decode, node)
    decode_engines, prefill_engines = num_decode * node.num_gpus, num_prefill * node.num_gpus
    storage = node.storage_bytes_per_s
    return {
        Resource.STORAGE_NIC: node.snic_bytes_per_s,
        Resource.PREFILL_CNIC_READ: 2 * by_pe * decode_engines,
        Resource.PREFILL_CNIC_WRITE: (by_pe + by_de) * decode_engines,
        Resource.DECODE_CNIC_READ: (by_pe + 2 * by_de) * prefill_engines,
        Resource.DECODE_CNIC_WRITE: (2 * by_pe + by_de) * prefill_engines,
        Resource.PREFILL_DRAM: 2 * storage,
        Resource.DECODE_DRAM: (3 + 2 * num_prefill / num_decode) * storage,
    }


def utilisations(num_prefill: int, num_decode: int, node: NodeShape) -> dict[Resource, float]:
    """Load over capacity; above 1 the resource cannot carry what the storage NICs deliver."""
    return {
        resource: load / _capacity_bytes_per_s(resource, node)
        for resource, load in loads(num_prefill, num_decode, node).items()
    }


def binding_resource(num_prefill: int, num_decode: int, node: NodeShape) -> Resource:
    """What saturates first as reads grow: the storage NIC, where one wants the limit, unless another is overloaded."""
    used = utilisations(num_prefill, num_decode, node)
    fullest = max(used, key=lambda resource: used[resource])
    return fullest if used[fullest] > 1 + ROUNDING else Resource.STORAGE_NIC


def bottleneck_free_range(node: NodeShape) -> PdRange:
    """s/(g-s) <= P/D <= min{(g-2s)/s, (g-s)/(2s), (M/(Bs)-3)/2}, where s <= g/2 and 2 B s <= M.

    Raises ConfigError when no P/D can be free of bottlenecks: because a prefill node's compute NICs (s > g/2) or DRAM
    (2 B s > M) cannot take even its own reads.
    """
    g, s = node.num_gpus, node.storage_share
    if 2 * s > g:
        raise ConfigError(
            f"num_snics = {node.num_snics}: storage bandwidth is {s:g} compute NICs' of {g}; more than half of "
            "them cannot be both filled from DRAM and drained to decode nodes at any P/D"
        )
    if 2 * node.storage_bytes_per_s > node.dram_bytes_per_s:
        raise ConfigError(
            f"dram_bytes_per_s = {node.dram_bytes_per_s:g}: must be at least twice the storage bandwidth "
            f"({node.storage_bytes_per_s:g} bytes/s), every byte is written and read once"
        )
    limits = {
        Resource.DECODE_CNIC_READ: (g - 2 * s) / s,
        Resource.DECODE_CNIC_WRITE: (g - s) / (2 * s),
        Resource.DECODE_DRAM: (node.dram_bytes_per_s / node.storage_bytes_per_s - 3) / 2,
    }
    high_limit = min(limits, key=lambda resource: limits[resource])
    return PdRange(s / (g - s), limits[high_limit], Resource.PREFILL_CNIC_WRITE, high_limit)


def _capacity_bytes_per_s(resource: Resource, node: NodeShape) -> float:
    if resource is Resource.STORAGE_NIC:
        return node.snic_bytes_per_s
    if resource in (Resource.PREFILL_DRAM, Resource.DECODE_DRAM):
        return node.dram_bytes_per_s
    return node.cnic_bytes_per_s


def _check_nodes(num_prefill: int, num_decode: int) -> None:
    for name, value in (("num_prefill", num_prefill), ("num_decode", num_decode)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")

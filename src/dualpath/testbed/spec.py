"""What a testbed is made of: hosts, rates of their NICs, classes or not. Names and addresses follow from that."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from dualpath.core.errors import ConfigError
from dualpath.traffic.fabric import ComputeNic, Fabric, engine_environment

SWITCH = "switch"  # the host between all others; runs what should have no NIC of its own, gateway and clients
STORAGE_NETWORK = IPv4Network("10.1.0.0/24")
COMPUTE_NETWORK = IPv4Network("10.2.0.0/24")
KV_NETWORK = IPv4Network("10.3.0.0/24")
STORAGE_NIC, COMPUTE_NIC, KV_NIC = "s0", "c0", "kv0"  # in every host
STORAGE_BRIDGE, COMPUTE_BRIDGE = "sbr0", "cbr0"  # in the switch

_HOST = re.compile(r"[a-z][a-z0-9-]{0,11}")  # with "s-" before it, a name of a network device
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_MAX_MBPS = 100_000.0


def check_name(name: str) -> None:
    """Raises ConfigError for what cannot be a testbed's name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name: must be lower-case letters, digits and -, not {name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TestbedSpec:
    """A checked description. Hosts whose names begin with "storage" serve storage; all others run engines."""

    __test__ = False  # not a test, whatever pytest makes of the name

    nodes: tuple[str, ...]
    storage_nic_mbps: float  # of every engine host, each direction, Mbit/s; a storage host's NIC is unlimited
    compute_nic_mbps: float
    classes: bool = True  # False: model execution and KV share one queue, for comparison
    name: str = "dualpath"  # prefix of all namespaces; testbeds of different names do not meet

    def __post_init__(self) -> None:
        check_name(self.name)
        for node in self.nodes:
            if not _HOST.fullmatch(node):
                raise ConfigError(
                    f"--nodes: a host's name must be at most 12 lower-case letters, digits and -, not {node!r}"
                )
            if node == SWITCH:
                raise ConfigError(f"--nodes: {SWITCH} is there anyway")
            if self.nodes.count(node) > 1:
                raise ConfigError(f"--nodes: {node} is listed twice")
        if not 1 <= len(self.nodes) <= 64:
            raise ConfigError(f"--nodes: must be 1 to 64 hosts, not {len(self.nodes)}")
        for flag, mbps in (("storage", self.storage_nic_mbps), ("compute", self.compute_nic_mbps)):
            if not 1 <= mbps <= _MAX_MBPS:
                raise ConfigError(f"--{flag}-nic-mbps: must be 1 to {_MAX_MBPS:g}, not {mbps:g}")

    @property
    def hosts(self) -> tuple[str, ...]:
        """All places where a command can run."""
        return (SWITCH, *self.nodes)

    def namespace(self, host: str) -> str:
        return f"{self.name}-{host}"

    @property
    def namespaces(self) -> tuple[str, ...]:
        return tuple(self.namespace(host) for host in self.hosts)

    def has_compute(self, host: str) -> bool:
        return not host.startswith("storage")

    def address(self, network: IPv4Network, host: str) -> IPv4Address:
        """A host's address on STORAGE_NETWORK, COMPUTE_NETWORK or KV_NETWORK; the switch has the last one."""
        return network[-2] if host == SWITCH else network[self.nodes.index(host) + 1]

    def nics(self, host: str) -> tuple[str, ...]:
        return (STORAGE_NIC, COMPUTE_NIC, KV_NIC) if self.has_compute(host) else (STORAGE_NIC,)

    def environment(self, host: str) -> dict[str, str]:
        """What a command on ``host`` finds set: which NIC is for what.

        ``UCX_TLS=tcp``: the hosts share one kernel, and UCX would take shared memory past all NICs.
        """
        variables = {"UCX_TLS": "tcp", "DUALPATH_TESTBED_HOST": host}
        if host == SWITCH or not self.has_compute(host):
            return variables
        nic = ComputeNic(netdev=COMPUTE_NIC, rate_mbps=self.compute_nic_mbps)
        return variables | engine_environment(Fabric.ETHERNET, {0: nic})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> TestbedSpec:
        return cls(**{**fields, "nodes": tuple(fields["nodes"])})

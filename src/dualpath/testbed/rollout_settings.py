"""What ``dualpath testbed rollout`` can be told: ``bench rollout``'s settings and the testbed's."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dualpath.bench.settings import RolloutSettings
from dualpath.cluster.threads import share_cores
from dualpath.config import NodeConfig, RayConfig, ServeConfig
from dualpath.config.fields import Table, setting
from dualpath.core.errors import ConfigError
from dualpath.testbed.rollout_processes import STORAGE_HOST
from dualpath.testbed.rollout_servers import available_bytes, require_room
from dualpath.testbed.spec import KV_NIC, STORAGE_NIC, TestbedSpec

STORAGE_NIC_MBPS = 200.0  # where nobody says


@dataclass(frozen=True, kw_only=True)
class TestbedTable(Table):
    """The links between the hosts; --storage-nic-mbps is among the cluster's settings."""

    __test__ = False

    TABLE = "testbed"
    compute_nic_mbps: float = setting(
        800.0, minimum=1, maximum=1e5, help="rate of an engine host's compute NIC in Mbit/s, each direction"
    )
    classes: str = setting("on", choices=("on", "off"), help="model execution before KV on compute NICs, or one queue")
    name: str = setting(
        "rollout",
        pattern=r"[a-z][a-z0-9-]{0,30}",
        pattern_means="lower-case letters, digits and dashes",
        help="of the testbed that is made for it, and removed at the end",
    )


@dataclass(frozen=True, kw_only=True)
class TestbedRolloutSettings(RolloutSettings):
    """Everything ``dualpath testbed rollout`` needs."""

    __test__ = False

    testbed: TestbedTable = field(default_factory=TestbedTable)


def check(settings: TestbedRolloutSettings) -> TestbedRolloutSettings:
    """With the testbed's own default rate. Raises ConfigError for what has no meaning here, or no room."""
    if settings.store.url is not None:
        raise ConfigError("--store: a testbed has a storage host of its own")
    cluster = settings.cluster
    if cluster.engine == "vllm":
        require_room(cluster.prefill + cluster.decode, available_bytes())
    return replace(settings, cluster=replace(cluster, storage_nic_mbps=cluster.storage_nic_mbps or STORAGE_NIC_MBPS))


def testbed_spec(settings: TestbedRolloutSettings) -> TestbedSpec:
    assert settings.cluster.storage_nic_mbps is not None
    return TestbedSpec(
        nodes=(STORAGE_HOST, *engine_hosts(settings)),
        storage_nic_mbps=settings.cluster.storage_nic_mbps,
        compute_nic_mbps=settings.testbed.compute_nic_mbps,
        classes=settings.testbed.classes == "on",
        name=settings.testbed.name,
    )


def with_nodes(config: ServeConfig, settings: TestbedRolloutSettings) -> ServeConfig:
    """``config`` of one process, with a node on every engine host instead. The kernel paces, nothing is emulated."""
    cluster = settings.cluster
    nodes = tuple(
        NodeConfig(
            name=host,
            role=role,
            engines=cluster.engines_per_node,
            storage_nic=STORAGE_NIC,
            storage_nic_mbps=cluster.storage_nic_mbps,
            compute_nics=(KV_NIC,),
            compute_nic_mbps=settings.testbed.compute_nic_mbps,
        )
        for host, role in engine_hosts(settings).items()
    )
    plain = replace(config.cluster, prefill=1, decode=1, engines_per_node=1, storage_nic_mbps=None)
    return share_cores(replace(config, cluster=plain, nodes=nodes, ray=RayConfig()))


def engine_hosts(settings: TestbedRolloutSettings) -> dict[str, str]:
    """Host -> role of its engines."""
    cluster = settings.cluster
    prefill = {f"pe{number}": "prefill" for number in range(cluster.prefill)}
    return prefill | {f"de{number}": "decode" for number in range(cluster.decode)}
